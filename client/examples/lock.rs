//! Does something that only one may do at a time: `cargo run --example lock -- 127.0.0.1:2379`.

use client::{Client, Op, Put, Result, Txn};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

pub async fn run(client: Client) -> Result<()> {
    // When this process dies, others get the lock ten seconds later.
    let session = client.session(10).await?;
    let lock = session.lock("printer").await?;
    println!("the lock is ours, with the number {}", lock.revision());

    tokio::select! {
        // Somebody else may have the lock from now on.
        () = lock.lost() => println!("lost"),
        done = print(&client, lock.is_held()) => println!("printed: {}", done?),
    }
    lock.unlock().await?;
    session.close().await
}

/// Even if the lock was lost a moment ago, nothing is written.
async fn print(client: &Client, is_held: client::Comparison) -> Result<bool> {
    let txn = Txn::new().when(is_held).then(Op::put(Put::new("printed", "a page")));
    Ok(client.txn(txn).await?.succeeded)
}
