//! Clients that get themselves tokens: nobody is refused for want of a good one.

use proto::EtcdError;

use super::{
    history::{Event, History},
    verdict::Verdict,
};

/// What a server answers to a token that has expired, or is not its own, or is older than a change of users; or to none.
const ABOUT_TOKENS: [EtcdError; 3] = [EtcdError::InvalidAuthToken, EtcdError::AuthOldRevision, EtcdError::UserEmpty];

pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for (index, entry) in history.entries().iter().enumerate() {
        match &entry.event {
            Event::Ok(_) => verdict.count("answers", 1),
            Event::Fail(failure) | Event::Info(failure)
                if ABOUT_TOKENS.iter().any(|error| failure.error.ends_with(error.message())) =>
            {
                verdict.found("refused for a token", [index], &failure.error);
            }
            _ => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::{
        super::tape::{Tape, put},
        *,
    };

    #[test]
    fn a_refusal_for_a_token_is_found_and_no_other() {
        let mut tape = Tape::default();
        tape.put(1, "a", "1", 2).ask(1, put("a", "2")).failed(1, EtcdError::NoLeader.message());
        assert!(check(&tape.history).passes());
        tape.ask(1, put("a", "3")).failed(1, EtcdError::InvalidAuthToken.message());
        assert_eq!(check(&tape.history).names(), ["refused for a token"]);
        assert!(!check(&Tape::default().history).passes(), "nothing proves nothing");
    }
}
