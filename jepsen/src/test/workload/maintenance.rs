//! A register's load while members are backed up and defragmented, which must change nothing that anyone sees.

use jepsen::check::history::Request;
use rand::Rng as _;

use super::{Workload, register};
use crate::test::client::{Choice, Client, Context};

const MAINTAINERS: u64 = 2;

pub const MAINTENANCE: Workload = Workload {
    name: "maintenance",
    about: "backups and defragmentation change nothing: single keys stay linearizable",
    processes: register::CAS.processes + MAINTAINERS,
    process: |context, index| match index {
        0..MAINTAINERS => Box::pin(maintain(context, index)),
        _ => (register::CAS.process)(context, index),
    },
    ..register::CAS
};

async fn maintain(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::choosing(&context, index, Choice::Always);
    loop {
        let pause = client.random_ms(300..1_500);
        if !client.wait(pause).await {
            return Ok(());
        }
        let request = match client.random.random_range(0..3) {
            0 => Request::Defragment,
            1 => Request::Snapshot,
            _ => Request::HashKv { revision: 0 },
        };
        client.call(request).await;
    }
}
