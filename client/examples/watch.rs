//! Follows changes, whatever happens to connections and members meanwhile: `cargo run --example watch -- 127.0.0.1:2379`.

use client::{Client, Get, Put, Result, Watch, mvccpb::event::EventType};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

/// A list, and then everything that changes: nothing is missed between the two.
pub async fn run(client: Client) -> Result<()> {
    let list = client.get(Get::prefix("job/")).await?;
    println!("{} jobs", list.kvs.len());
    let next = list.header.map_or(0, |header| header.revision) + 1;
    let mut watcher = client.watch(Watch::prefix("job/").from_revision(next).prev_kv()).await?;

    for number in 0..3 {
        client.put(Put::new(format!("job/{number}"), "to do")).await?;
    }
    let mut seen = 0;
    while seen < 3 {
        for event in watcher.next().await?.events {
            let key = event.kv.as_ref().map(|kv| kv.key.clone()).unwrap_or_default();
            match event.r#type() {
                EventType::Put => println!("{key:?} was put"),
                EventType::Delete => println!("{key:?} was deleted"),
            }
            seen += 1;
        }
    }
    println!("a restarted program would go on from revision {}", watcher.next_revision());
    Ok(())
}
