//! What a control client sends: a request is read the same however it is cut, and in no more than
//! its bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prefork_supervisor::internals::Request;

fuzz_target!(|input: &[u8]| {
    let whole = Request::read(input);
    if input.len() >= 4096 {
        assert!(whole.is_some(), "a client cannot go on for ever");
    }
    if let Some(Ok(request)) = &whole {
        let end = input
            .iter()
            .position(|byte| *byte == b'\n')
            .expect("a request is a line");
        assert_eq!(
            Request::read(&input[..end]),
            None,
            "nothing is done before the line is complete"
        );
        let mut line = serde_json::to_vec(request).expect("it is JSON");
        line.push(b'\n');
        assert_eq!(Request::read(&line), whole);
    }
});
