use super::*;

/// A connection whose server has sent its settings, and what it wrote so far taken away.
fn settled(settings: &[u8]) -> Connection {
    let mut connection = Connection::new("h:1".to_string());
    assert!(connection.call(0, Lane::Unary, "/s/m", b"early").is_none());
    let mut input = Vec::new();
    put_head(&mut input, settings.len(), frame::SETTINGS, 0, 0);
    input.extend_from_slice(settings);
    assert!(connection.next(&input, &mut 0).unwrap().is_none());
    assert!(connection.settled());
    connection.out.clear();
    connection
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_head(&mut out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
    out
}

/// All events as text.
fn events(connection: &mut Connection, input: &[u8]) -> Vec<String> {
    let (mut at, mut events) = (0, Vec::new());
    while let Some(event) = connection.next(input, &mut at).unwrap() {
        events.push(match event {
            Event::Message { owner, message, .. } => format!("{owner}: {}", String::from_utf8_lossy(&message)),
            Event::Ended { owner, result: Ok(()), .. } => format!("{owner} ended"),
            Event::Ended { owner, result: Err(status), .. } => {
                format!("{owner} failed: {:?} {}", status.code(), status.message())
            }
        });
    }
    events
}

/// `name: value` as a literal that is not kept.
fn header(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

#[test]
fn calls_from_before_the_settings_are_sent_after_them() {
    let mut connection = settled(&[]);
    let ended = frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &header("grpc-status", "0"));
    assert_eq!(events(&mut connection, &ended), ["0 ended"]);
}

#[test]
fn several_messages_in_a_frame_and_one_in_several_frames_are_found() {
    let mut connection = settled(&[]);
    connection.call(7, Lane::Stream, "/s/m", b"").unwrap();
    let three = b"\0\0\0\0\x01a\0\0\0\0\x00\0\0\0\0\x03bc";
    let mut input = frame(frame::DATA, 0, 3, three);
    input.extend(frame(frame::DATA, frame::PADDED, 3, b"\x02d\0\0__"));
    input.extend(frame(frame::DATA, 0, 3, b"\0\0\x02ef"));
    assert_eq!(events(&mut connection, &input), ["7: a", "7: ", "7: bcd", "7: ef"]);
}

#[test]
fn trailers_tell_how_a_call_ended_also_when_they_are_alike() {
    let mut connection = settled(&[]);
    for _ in 0..3 {
        connection.call(1, Lane::Unary, "/s/m", b"x");
    }
    let ends = |stream, fields: &[Vec<u8>]| {
        frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &fields.concat())
    };
    let bad = [header("grpc-status", "5"), header("grpc-message", "no%20key%")];
    let input =
        [ends(1, &[header("grpc-status", "0")]), ends(3, &[header("grpc-status", "0")]), ends(5, &bad)].concat();
    assert_eq!(events(&mut connection, &input), ["0 ended", "1 ended", "1 failed: NotFound no key%"]);
    let input = ends(7, &[header("x", "y")]);
    assert_eq!(events(&mut connection, &input), ["1 failed: Internal the stream ended without a status"]);
}

#[test]
fn a_ping_is_answered_and_a_farewell_is_an_error() {
    let mut connection = settled(&[]);
    assert!(events(&mut connection, &frame(frame::PING, 0, 0, b"12345678")).is_empty());
    assert_eq!(connection.out, frame(frame::PING, frame::ACK, 0, b"12345678"));
    let farewell = frame(frame::GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0benough");
    let error = connection.next(&farewell, &mut 0).unwrap_err().to_string();
    assert_eq!(error, "the server closes the connection: error code 11, \"enough\"");
}

#[test]
fn a_message_larger_than_the_window_goes_on_when_there_is_room() {
    // The server's streams take 8 bytes at a time.
    let mut connection = settled(&[0, 4, 0, 0, 0, 8]);
    connection.call(1, Lane::Unary, "/s/m", b"0123456789");
    let sent = frame(frame::DATA, 0, 3, b"\0\0\0\0\x0a012");
    assert!(connection.out.ends_with(&sent), "{:?}", connection.out);
    connection.out.clear();
    assert!(events(&mut connection, &frame(frame::WINDOW_UPDATE, 0, 3, &[0, 0, 0, 100])).is_empty());
    assert_eq!(connection.out, frame(frame::DATA, frame::END_STREAM, 3, b"3456789"));
}

#[test]
fn a_reset_stream_fails_and_what_it_still_sends_is_left() {
    let mut connection = settled(&[]);
    connection.call(4, Lane::Stream, "/s/m", b"x");
    let mut input = frame(frame::RST_STREAM, 0, 3, &[0, 0, 0, 7]);
    input.extend(frame(frame::DATA, 0, 3, b"\0\0\0\0\x01a"));
    assert_eq!(events(&mut connection, &input), ["4 failed: Internal the server reset the stream: error code 7"]);
}
