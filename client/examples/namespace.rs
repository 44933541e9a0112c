//! Two programs in one store that do not see each other: `cargo run --example namespace -- 127.0.0.1:2379`.

use client::{Client, Get, Put, Result};

#[tokio::main]
async fn main() -> Result<()> {
    run(Client::connect(std::env::args().skip(1))?).await
}

pub async fn run(client: Client) -> Result<()> {
    let (shop, blog) = (client.namespaced("shop/"), client.namespaced("blog/"));
    shop.put(Put::new("title", "Nails and pintles")).await?;
    blog.put(Put::new("title", "On hinges")).await?;
    for (name, client) in [("shop", &shop), ("blog", &blog), ("all", &client)] {
        let keys: Vec<_> = client.get(Get::all().keys_only()).await?.kvs.into_iter().map(|kv| kv.key).collect();
        println!("{name} sees {keys:?}");
    }
    Ok(())
}
