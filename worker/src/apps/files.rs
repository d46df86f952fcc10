//! `files:DIR`: static files, by tower-http's `ServeDir`: ranges, ETags, conditional requests,
//! `index.html`.
//!
//! `ServeDir` keeps `..` out but follows symbolic links wherever they lead. So the path is resolved
//! here first, and a file that really lies outside of DIR is not found. A user who can make
//! symlinks inside DIR while a request is being answered could still win a race between the two; do
//! not give such users write access to DIR.

use super::catalog::AppError;
use crate::body::Body;
use crate::service::Service;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tower::ServiceExt;
use tower_http::services::ServeDir;
use tower_http::services::fs::ServeFileSystemResponseBody;

type Answer = Response<Either<ServeFileSystemResponseBody, Full<Bytes>>>;

pub(super) fn service(directory: &str) -> Result<Service, AppError> {
    let readable = || {
        let root = std::fs::canonicalize(directory)?;
        std::fs::read_dir(&root)?;
        Ok(root)
    };
    let root = readable().map_err(|error| AppError::Directory {
        directory: directory.to_owned(),
        error,
    })?;
    let root: Arc<Path> = root.into();
    Ok(Service::http(move |_| {
        let files = ServeDir::new(&root);
        let root = Arc::clone(&root);
        std::future::ready(Ok(tower::service_fn(move |request: Request<Body>| {
            answer(Arc::clone(&root), files.clone(), request)
        })))
    }))
}

async fn answer(
    root: Arc<Path>,
    files: ServeDir,
    request: Request<Body>,
) -> Result<Answer, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD.\n");
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refused);
    }
    let not_found = || Ok(text(StatusCode::NOT_FOUND, "Not found.\n"));
    let Some(path) = relative(request.uri().path()) else {
        return not_found();
    };
    let path = root.join(path);
    let inside = tokio::task::spawn_blocking(move || {
        let real = std::fs::canonicalize(path)?;
        // What `ServeDir` opens for a directory is one step further.
        let real = if real.is_dir() {
            std::fs::canonicalize(real.join("index.html"))?
        } else {
            real
        };
        Ok::<_, std::io::Error>(real.starts_with(&root))
    });
    if !matches!(inside.await, Ok(Ok(true))) {
        return not_found();
    }
    Ok(files.oneshot(request).await?.map(Either::Left))
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut response = Response::new(Either::Right(Full::new(Bytes::from_static(
        text.as_bytes(),
    ))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The path of a URI below the root, decoded; `None` when it tries to leave, or cannot be a path.
fn relative(path: &str) -> Option<PathBuf> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(bytes.next()?)? * 16 + hex(bytes.next()?)?,
            byte => byte,
        });
    }
    if decoded.contains(&0) {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(decoded));
    let mut below = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::RootDir | Component::CurDir => (),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(below)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::relative;
    use std::path::Path;

    #[test]
    fn paths_stay_below() {
        assert_eq!(relative("/a/b%20c").as_deref(), Some(Path::new("a/b c")));
        assert_eq!(
            relative("//etc/passwd").as_deref(),
            Some(Path::new("etc/passwd"))
        );
        for bad in ["/../x", "/a/../../x", "/%2e%2e/x", "/a%00b", "/%zz", "/%2"] {
            assert_eq!(relative(bad), None, "{bad}");
        }
    }
}
