//! Moves money between accounts that others use at the same time: `cargo run --example stm -- 127.0.0.1:2379`.

use client::{Client, Error, Isolation, Put, Result, Stm};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

pub async fn run(client: Client) -> Result<()> {
    for account in ["account/ann", "account/bob"] {
        client.put(Put::new(account, "100")).await?;
    }
    let transfers = (0..5).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.stm(Isolation::default(), transfer).await })
    });
    for transfer in transfers.collect::<Vec<_>>() {
        println!("ann has {} left", transfer.await.expect("a transfer does not panic")?);
    }
    Ok(())
}

/// Carried out again when somebody else was quicker: it must do nothing but read and write.
async fn transfer(tx: Stm) -> Result<u64, Error> {
    let ann = balance(&tx, "account/ann").await?;
    let bob = balance(&tx, "account/bob").await?;
    let amount = ann.min(10);
    tx.put("account/ann", (ann - amount).to_string());
    tx.put("account/bob", (bob + amount).to_string());
    Ok(ann - amount)
}

async fn balance(tx: &Stm, account: &'static str) -> Result<u64, Error> {
    let text = tx.get(account).await?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&text).parse().unwrap_or(0))
}
