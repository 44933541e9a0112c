//! completion: what shells need to know to complete commands and flags.

use std::io;

use clap::{Args, ValueEnum as _};
use clap_complete::Shell;

use crate::failure;

#[derive(Args)]
#[command(
    override_usage = "pintlectl completion <bash|elvish|fish|powershell|zsh>",
    after_help = "\
bash        source <(pintlectl completion bash)
            for ever: pintlectl completion bash > /etc/bash_completion.d/pintlectl
zsh         pintlectl completion zsh > \"${fpath[1]}/_pintlectl\"
fish        pintlectl completion fish > ~/.config/fish/completions/pintlectl.fish
powershell  pintlectl completion powershell | Out-String | Invoke-Expression"
)]
pub struct Completion {
    #[arg(value_name = "SHELL")]
    args: Vec<String>,
}

impl Completion {
    pub fn run(self) -> anyhow::Result<()> {
        let [shell] = self.args.as_slice() else {
            return Err(failure::bad_arguments("completion takes the name of one shell").into());
        };
        let shell = Shell::from_str(shell, true)
            .map_err(|_| failure::bad_arguments(format!("{shell} is none of bash, elvish, fish, powershell, zsh")))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut crate::command(), "pintlectl", &mut script);
        Ok(io::Write::write_all(&mut io::stdout(), &script)?)
    }
}
