//! A packet from a worker: no panic, no memory beyond its bound, and what is understood is
//! understood again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prefork_protocol::message::{ToSupervisor, ToWorker};
use prefork_protocol::wire::{decode, encode};

fuzz_target!(|packet: &[u8]| {
    if let Ok(message) = decode::<ToSupervisor>(packet) {
        let again = encode(&message).expect("it came out of a packet");
        assert_eq!(decode(&again), Ok(message));
    }
    if let Ok(message) = decode::<ToWorker>(packet) {
        let again = encode(&message).expect("it came out of a packet");
        assert_eq!(decode(&again), Ok(message));
    }
});
