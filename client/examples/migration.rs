//! Moves from one store to another while it is used: `cargo run --example migration -- 127.0.0.1:2379 127.0.0.1:3379`.
//!
//! `pintlectl mirror` is this with a progress line.

use std::time::Duration;

use client::{
    Client,
    mirror::{Failure, Mirror, Options},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, destination] = &arguments[..] else { return Err("usage: migration FROM TO".into()) };
    run(Client::connect([source])?, Client::connect([destination])?).await?;
    Ok(())
}

pub async fn run(source: Client, destination: Client) -> Result<(), Failure> {
    let mirror = Mirror::new(source, destination, Options::default());
    let mut status = mirror.status();
    tokio::select! {
        // It ends with an error only.
        failure = mirror.run() => failure.map(|never| match never {})?,
        // Until the destination has caught up. In earnest: until whoever writes has been stopped.
        _ = status.wait_for(|status| status.mirrored_revision > 0 && status.lag() == 0) => {}
    }
    let verdict = mirror.cut_over(Duration::from_secs(60)).await?;
    println!("{} keys, equal: {}", verdict.keys, verdict.is_equal());
    Ok(())
}
