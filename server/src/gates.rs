//! Feature gates: what `--feature-gates=name=true,…` switches on and off.
//! Source: etcd, `server/features/etcd_features.go`, `pkg/featuregate/feature_gate.go`.
//!
//! Each gate is alpha (off unless asked for) or beta (on unless refused). `AllAlpha` and `AllBeta` speak for all of
//! their kind that are not named themselves.

use std::collections::BTreeMap;

use crate::flags::Flags;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Alpha,
    Beta,
}

impl Stage {
    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }

    /// The gate that stands for all of this stage.
    pub fn group(self) -> &'static str {
        match self {
            Stage::Alpha => "AllAlpha",
            Stage::Beta => "AllBeta",
        }
    }
}

macro_rules! gates {
    ($($gate:ident $stage:ident $default:literal;)*) => {
        /// The gates of etcd 3.7, by its names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Gate { $($gate,)* }

        impl Gate {
            pub const ALL: &[Gate] = &[$(Gate::$gate,)*];

            pub fn name(self) -> &'static str {
                match self { $(Gate::$gate => stringify!($gate),)* }
            }

            pub fn stage(self) -> Stage {
                match self { $(Gate::$gate => Stage::$stage,)* }
            }

            fn default(self) -> bool {
                match self { $(Gate::$gate => $default,)* }
            }
        }
    };
}

gates! {
    CompactHashCheck Alpha false;
    FastLeaseKeepAlive Beta true;
    InitialCorruptCheck Alpha false;
    LeaseCheckpoint Alpha false;
    LeaseCheckpointPersist Alpha false;
    PriorityRequest Alpha false;
    SetMemberLocalAddr Alpha false;
    StopGRPCServiceOnDefrag Alpha false;
    TxnModeWriteWithSharedBuffer Beta true;
}

/// Flags of etcd 3.5 that became gates.
const FORMER_FLAGS: &[(&str, Gate)] = &[
    ("compact-hash-check-enabled", Gate::CompactHashCheck),
    ("initial-corrupt-check", Gate::InitialCorruptCheck),
    ("enable-lease-checkpoint", Gate::LeaseCheckpoint),
    ("enable-lease-checkpoint-persist", Gate::LeaseCheckpointPersist),
    ("stop-grpc-service-on-defrag", Gate::StopGRPCServiceOnDefrag),
    ("txn-mode-write-with-shared-buffer", Gate::TxnModeWriteWithSharedBuffer),
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    #[error("missing bool value for {0}")]
    NoValue(String),
    #[error("invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    NotABool { name: String, value: String },
    #[error("unrecognized feature gate: {0}")]
    Unknown(String),
    #[error("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")]
    PersistWithoutCheckpoint,
    #[error("cannot specify both flags: --{flag}={value} and --feature-gates={gates}")]
    GivenTwice { flag: &'static str, value: String, gates: String },
}

/// Which gates are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gates {
    /// What was asked for; the rest has its default.
    given: BTreeMap<Gate, bool>,
    all_alpha: Option<bool>,
    all_beta: Option<bool>,
}

impl Gates {
    pub fn from_flags(flags: &Flags) -> Result<Gates, GateError> {
        let text = flags.get("feature-gates");
        let mut gates = Gates::parse(text)?;
        for &(flag, gate) in FORMER_FLAGS.iter().filter(|(flag, _)| flags.is_given(flag)) {
            if gates.given.insert(gate, flags.is_true(flag)).is_some() {
                return Err(GateError::GivenTwice { flag, value: flags.get(flag).into(), gates: text.into() });
            }
        }
        if gates.is_on(Gate::LeaseCheckpointPersist) && !gates.is_on(Gate::LeaseCheckpoint) {
            return Err(GateError::PersistWithoutCheckpoint);
        }
        Ok(gates)
    }

    fn parse(text: &str) -> Result<Gates, GateError> {
        let mut gates = Gates::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| GateError::NoValue(part.trim().into()))?;
            let (name, value) = (name.trim(), value.trim());
            let is_on = crate::flags::boolean(value)
                .ok_or_else(|| GateError::NotABool { name: name.into(), value: value.into() })?;
            match name {
                "AllAlpha" => gates.all_alpha = Some(is_on),
                "AllBeta" => gates.all_beta = Some(is_on),
                _ => {
                    let gate = Gate::ALL.iter().find(|gate| gate.name() == name);
                    gates.given.insert(*gate.ok_or_else(|| GateError::Unknown(name.into()))?, is_on);
                }
            }
        }
        Ok(gates)
    }

    pub fn is_on(&self, gate: Gate) -> bool {
        self.given.get(&gate).copied().or(self.group(gate.stage())).unwrap_or(gate.default())
    }

    /// What was asked for all gates of a stage.
    pub fn group(&self, stage: Stage) -> Option<bool> {
        match stage {
            Stage::Alpha => self.all_alpha,
            Stage::Beta => self.all_beta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(arguments: &[&str]) -> Result<Gates, GateError> {
        Gates::from_flags(&Flags::read(arguments.iter().map(|a| a.to_string()), []).unwrap())
    }

    #[test]
    fn a_gate_has_its_default_until_it_is_named() {
        let defaults = gates(&[]).unwrap();
        let on: Vec<&str> = Gate::ALL.iter().filter(|gate| defaults.is_on(**gate)).map(|gate| gate.name()).collect();
        assert_eq!(on, ["FastLeaseKeepAlive", "TxnModeWriteWithSharedBuffer"]);
        let named = gates(&["--feature-gates=CompactHashCheck=true, FastLeaseKeepAlive = f"]).unwrap();
        assert!(named.is_on(Gate::CompactHashCheck) && !named.is_on(Gate::FastLeaseKeepAlive));
    }

    #[test]
    fn a_group_speaks_for_those_that_are_not_named() {
        let gates = gates(&["--feature-gates=AllAlpha=true,InitialCorruptCheck=false,AllBeta=0"]).unwrap();
        assert!(gates.is_on(Gate::LeaseCheckpoint) && !gates.is_on(Gate::InitialCorruptCheck));
        assert!(!gates.is_on(Gate::TxnModeWriteWithSharedBuffer));
    }

    #[test]
    fn a_flag_that_became_a_gate_sets_it() {
        assert!(gates(&["--experimental-initial-corrupt-check"]).unwrap().is_on(Gate::InitialCorruptCheck));
        assert!(!gates(&["--experimental-initial-corrupt-check=false"]).unwrap().is_on(Gate::InitialCorruptCheck));
        let twice = gates(&["--initial-corrupt-check", "--feature-gates=InitialCorruptCheck=true"]);
        assert!(matches!(twice, Err(GateError::GivenTwice { flag: "initial-corrupt-check", .. })));
    }

    #[test]
    fn refusals_are_etcds() {
        let refusal = |text: &str| gates(&["--feature-gates", text]).unwrap_err().to_string();
        assert_eq!(refusal("X=true"), "unrecognized feature gate: X");
        assert_eq!(refusal("AllAlpha"), "missing bool value for AllAlpha");
        assert_eq!(
            refusal("AllAlpha=x"),
            "invalid value of AllAlpha=x, err: strconv.ParseBool: parsing \"x\": invalid syntax"
        );
        assert!(refusal("LeaseCheckpointPersist=true").starts_with("enabling feature gate LeaseCheckpointPersist"));
    }
}
