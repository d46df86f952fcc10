//! A datagram from a foreign worker: what reaches a log line or the status is short and printable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prefork_supervisor::internals::{WorkerNotice, parse};

fuzz_target!(|datagram: &[u8]| {
    for notice in parse(datagram) {
        if let WorkerNotice::Status(text) = notice {
            assert!(text.chars().count() <= 256);
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
});
