//! Compiles the .proto files with protox, a protobuf compiler in Rust: no protoc is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

const ETCD: &[&str] = &[
    "etcd/kv.proto",
    "etcd/watch.proto",
    "etcd/lease.proto",
    "etcd/cluster.proto",
    "etcd/maintenance.proto",
    "etcd/auth.proto",
    "etcd/election.proto",
    "etcd/lock.proto",
];
const PINTLE: &[&str] = &["pintle/command.proto", "pintle/peer.proto"];

const CODEC: &str = "crate::codec::Codec";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    // For gRPC reflection: what clients may call, and nothing else.
    fs::write(out.join("etcd.bin"), protox::compile(ETCD, ["proto"])?.encode_to_vec())?;

    let all: Vec<&str> = ETCD.iter().chain(PINTLE).copied().collect();
    tonic_prost_build::configure().bytes(".").codec_path(CODEC).compile_fds(protox::compile(all, ["proto"])?)?;

    let raw = out.join("raw");
    fs::create_dir_all(&raw)?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path(CODEC)
        .build_client(false)
        .extern_path(".etcdserverpb.WatchRequest", "crate::etcdserverpb::WatchRequest")
        .extern_path(".etcdserverpb.ResponseHeader", "crate::etcdserverpb::ResponseHeader")
        .out_dir(raw)
        .compile_fds(protox::compile(["raw/watch.proto"], ["proto"])?)?;
    Ok(())
}
