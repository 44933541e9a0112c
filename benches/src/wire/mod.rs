//! A client of gRPC over plain TCP that costs a fraction of what the servers do, so that a machine that runs both
//! measures the server.
//!
//! ```text
//! socket.rs ──> connection.rs   frames, windows, streams: events out, requests gathered for one write
//!                 proto::http2   heads of frames, headers
//!               protobuf.rs   answers read where they lie
//! epoll.rs      waiting
//! ```
//!
//! What makes it cheap: one thread and no tasks; a request's headers are a few bytes of the server's header table; what
//! has gathered for a connection is written at once; answers are looked at in the buffer they were read into; header
//! blocks that were read before are compared, not read again.

mod connection;
pub mod epoll;
pub mod protobuf;
mod socket;

pub use connection::{Event, Lane};
pub use socket::{Socket, authority};
