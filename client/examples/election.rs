//! One of several leads, the others know which: `cargo run --example election -- 127.0.0.1:2379`.

use client::{Client, Result};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

pub async fn run(client: Client) -> Result<()> {
    let mut observer = client.observe("scheduler").await?;
    let candidates = ["ann", "bob"].map(|name| tokio::spawn(lead(client.clone(), name)));
    for _ in 0..4 {
        let news = observer.next().await?;
        println!("the leader says {:?}", news.value);
    }
    for candidate in candidates {
        candidate.await.expect("a candidate does not panic")?;
    }
    Ok(())
}

async fn lead(client: Client, name: &'static str) -> Result<()> {
    let session = client.session(10).await?;
    let leadership = session.campaign("scheduler", name).await?;
    leadership.proclaim(format!("{name} has work for you")).await?;
    leadership.resign().await?;
    session.close().await
}
