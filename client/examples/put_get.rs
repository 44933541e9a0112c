//! Writes, reads, and a transaction: `cargo run --example put_get -- 127.0.0.1:2379`.

use client::{Client, Compare, Delete, Get, Op, Put, Result, Txn};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

pub async fn run(client: Client) -> Result<()> {
    client.put(Put::new("greeting/en", "hello")).await?;
    let before = client.put(Put::new("greeting/en", "good morning").prev_kv()).await?.prev_kv;
    println!("before: {:?}", before.map(|kv| kv.value));

    for kv in client.get(Get::prefix("greeting/").limit(10)).await?.kvs {
        println!("{:?} = {:?}, changed at revision {}", kv.key, kv.value, kv.mod_revision);
    }

    // Creates a key unless it is there.
    let create = Txn::new()
        .when(Compare::create_revision("greeting/de").equals(0))
        .then(Op::put(Put::new("greeting/de", "guten Morgen")))
        .otherwise(Op::get(Get::key("greeting/de")));
    println!("created: {}", client.txn(create).await?.succeeded);

    let deleted = client.delete(Delete::prefix("greeting/")).await?.deleted;
    println!("{deleted} deleted");
    Ok(())
}
