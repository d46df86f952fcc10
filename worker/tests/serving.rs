//! Each class serves, and a drain loses nothing.
#![allow(clippy::unwrap_used)]
mod harness;
use harness::*;
use prefork::settings::ClassName;

#[test]
fn each_class_serves_and_drains() {
    for name in ClassName::ALL {
        let (worker, address) = Worker::serving("hello", class(name));
        for _ in 0..20 {
            let answer = get(address, "/");
            assert_eq!((answer.status, answer.text().as_str()), (200, "Hello, client!"), "{name}");
            assert_eq!(answer.header("x-prefork-slot"), Some("2"));
        }
        worker.finish();
    }
}
