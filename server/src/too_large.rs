//! The answer to a request that is longer than gRPC takes here, in the words of etcd's gRPC library.

use std::fmt::Display;

use http::Response;
use tonic::{Code, Status};

/// tonic's text for it: `… found 5 bytes, the limit is: 4 bytes`.
const TONIC_TEXT: &str = "decoded message length too large";

pub fn in_etcds_words<B: Default>(response: Response<B>) -> Response<B> {
    let is_out_of_range = response.headers().get(Status::GRPC_STATUS).is_some_and(|code| code == "11");
    if !is_out_of_range {
        return response;
    }
    match Status::from_header_map(response.headers()).as_ref().and_then(reworded) {
        Some(status) => status.into_http(),
        None => response,
    }
}

fn reworded(status: &Status) -> Option<Status> {
    let text = status.message();
    if status.code() != Code::OutOfRange || !text.contains(TONIC_TEXT) {
        return None;
    }
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let (found, limit) = (numbers.next()?, numbers.next()?);
    Some(refusal(found, limit))
}

/// What etcd's library answers to a message of `found` bytes where it takes `limit`.
pub fn refusal(found: impl Display, limit: impl Display) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_refusal_of_a_long_message_is_reworded() {
        let text = "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes";
        let response = in_etcds_words(Status::out_of_range(text).into_http::<()>());
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (5 vs. 4)");
        let other = in_etcds_words(Status::out_of_range("compacted").into_http::<()>());
        assert_eq!(other.headers()["grpc-status"], "11");
    }
}
