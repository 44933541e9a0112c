//! The target's side of a call.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use tower::Service as _;

use super::{
    body::Sender,
    call::{Call, Head},
    wire::unavailable,
};

/// Unless it is disarmed, tells the caller that its connection broke: as when a service panics.
struct Unanswered(Option<Arc<Call>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(call) = self.0.take() else { return };
        if call.is_alive(super::call::Direction::Answer).0
            && !call.is_over()
            && let Some(wire) = call.wire.upgrade()
        {
            let by = call.to;
            wire.state.lock().push_break(call, by, unavailable("the connection was closed"));
        }
    }
}

/// Answers a request, until the answer is sent or nobody waits for it any more: then the service's future is dropped,
/// as a server over HTTP/2 does it.
pub async fn answer(
    call: Arc<Call>,
    attempt: usize,
    mut service: axum::Router,
    request: http::Request<axum::body::Body>,
) {
    let mut unanswered = Unanswered(Some(call.clone()));
    let mut work = pin!(async {
        let Ok(response) = service.call(request).await;
        let (mut parts, body) = response.into_parts();
        parts.extensions.clear();
        Sender::new(call.clone(), attempt, Head::Answer(Box::new(parts)), body).run().await;
    });
    poll_fn(|context| match call.poll_over(attempt, context) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => work.as_mut().poll(context),
    })
    .await;
    unanswered.0 = None;
}
