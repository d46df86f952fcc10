//! The stock apps.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod harness;
use harness::*;
use std::io::{Read, Write};

#[test]
fn echo_sends_back() {
    let (mut worker, address) = Worker::serving("echo", ASYNC);
    let mut stream = connect(address);
    let text = vec![b'e'; 100_000];
    let mut writer = stream.try_clone().unwrap();
    let sent = text.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
    });
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == text);
    writing.join().unwrap();
    worker.drain(false);
    stream.write_all(b"still here").unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"still here");
    drop(stream);
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn greeter_greets_and_closes() {
    for class in [SYNC, THREADS, ASYNC] {
        let (worker, address) = Worker::serving("greeter", class);
        for _ in 0..5 {
            let mut stream = connect(address);
            stream.write_all(&b"who\nare \xff you".repeat(300)).unwrap();
            let mut greeting = Vec::new();
            stream.read_to_end(&mut greeting).unwrap();
            assert_eq!(greeting, b"Hello, client!");
        }
        worker.finish();
    }
}

#[test]
fn times_out_of_range_get_400() {
    let (worker, address) = Worker::serving("sleep", ASYNC);
    for bad in ["/?ms=60001", "/?ms=x", "/?ms=-1"] {
        assert_eq!(get(address, bad).status, 400);
    }
    assert_eq!(get(address, "/?ms=1").status, 200);
    worker.finish();
}

#[test]
fn files_are_served_and_nothing_else() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("text.txt"), "0123456789").unwrap();
    std::fs::write(at("index.html"), "<p>index").unwrap();
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::create_dir(at("evil")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), at("link")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), at("evil/index.html")).unwrap();
    std::os::unix::fs::symlink(outside.path(), at("away")).unwrap();
    std::os::unix::fs::symlink("text.txt", at("inner")).unwrap();
    let (worker, address) =
        Worker::serving(&format!("files:{}", directory.path().display()), ASYNC);
    let answer = get(address, "/text.txt");
    assert_eq!((answer.status, answer.text().as_str()), (200, "0123456789"));
    let etag = answer.header("etag").expect("an ETag").to_owned();
    assert_eq!(get(address, "/").text(), "<p>index");
    assert_eq!(get(address, "/inner").text(), "0123456789");
    let with = |head: &str| {
        let mut connection = client(address);
        connection.send(&format!(
            "GET /text.txt HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n"
        ));
        connection.answer().unwrap()
    };
    let range = with("Range: bytes=2-4");
    assert_eq!((range.status, range.text().as_str()), (206, "234"));
    assert_eq!(with("Range: bytes=20-").status, 416);
    assert_eq!(with(&format!("If-None-Match: {etag}")).status, 304);
    assert_eq!(with("If-None-Match: \"other\"").status, 200);
    let host = outside.path().file_name().unwrap().to_str().unwrap();
    for bad in [
        "/link",
        "/away/secret",
        "/evil/",
        "/sub/",
        "/nowhere",
        "/../x",
        "/%2e%2e/x",
        &format!("/../{host}/secret"),
        &format!("/%2e%2e%2f{host}/secret"),
        "/text.txt%00",
    ] {
        let answer = get(address, bad);
        assert_eq!(answer.status, 404, "{bad}: {answer:?}");
    }
    let mut connection = client(address);
    connection.send("POST /text.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(connection.answer().unwrap().status, 405);
    connection.send("HEAD /text.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut head = String::new();
    connection.stream.read_to_string(&mut head).unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    worker.finish();
}
