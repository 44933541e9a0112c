//! TLS and a password: `cargo run --example secure -- https://127.0.0.1:2379 ca.pem ann word`.

use client::{Client, Credentials, Get, Options, Result, Tls};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, ca, user, password] = &arguments[..] else {
        eprintln!("usage: secure URL CA-FILE USER PASSWORD");
        return Ok(());
    };
    run(Client::with_options([endpoint], options(ca, user, password))?).await
}

/// Without a user, the name on the client's certificate says who it is: `Tls::with_ca(ca).identity(certificate, key)`.
pub fn options(ca: &str, user: &str, password: &str) -> Options {
    Options {
        tls: Some(Tls::with_ca(ca)),
        credentials: Some(Credentials::Password { user: user.to_string(), password: password.to_string() }),
        ..Options::default()
    }
}

pub async fn run(client: Client) -> Result<()> {
    println!("{} keys", client.get(Get::all().count_only()).await?.count);
    Ok(())
}
