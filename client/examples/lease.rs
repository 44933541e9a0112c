//! A key that goes with the process that wrote it: `cargo run --example lease -- 127.0.0.1:2379`.

use client::{Client, Get, LeaseId, Put, Result};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

pub async fn run(client: Client) -> Result<()> {
    let lease = LeaseId(client.lease_grant(5, LeaseId(0)).await?.id);
    let mut keeper = client.keep_alive(lease);
    client.put(Put::new("service/here", "127.0.0.1:8080").lease(lease)).await?;
    let renewed = keeper.next().await?;
    println!("lease {lease} lives for another {} s", renewed.ttl);

    // Whoever offers the service must stop when this returns.
    let gone = tokio::spawn(async move { keeper.gone().await });
    client.lease_revoke(lease).await?;
    gone.await.expect("waiting does not panic");
    println!("{} services", client.get(Get::prefix("service/")).await?.count);
    Ok(())
}
