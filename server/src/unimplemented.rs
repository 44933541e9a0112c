//! The RPCs of etcd that Pintle does not have yet. A client is told which one is missing.

use tonic::Status;

/// `rpc` as package, service and method.
pub fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!("pintle: {rpc} is not implemented"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_the_rpc() {
        let status = unimplemented("etcdserverpb.Maintenance/Snapshot");
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert_eq!(status.message(), "pintle: etcdserverpb.Maintenance/Snapshot is not implemented");
    }
}
