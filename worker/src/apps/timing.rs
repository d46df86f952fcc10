//! `sleep`, `burn` and `block`: take up time in the three ways in which a handler can. For tests
//! and measurements.

use super::headers::headers;
use crate::body::Body;
use crate::service::Service;
use http::{Request, Response, StatusCode};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The longest time that a request may ask for.
const LONGEST_MS: u64 = 60_000;

#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// Wait without holding up the thread.
    Sleep,
    /// Compute.
    Burn,
    /// Sleep in the thread.
    Block,
}

pub(super) fn service(way: Way) -> Service {
    Service::http(move |context| {
        let headers = Rc::new(headers(context));
        std::future::ready(Ok(tower::service_fn(move |request: Request<Body>| {
            let headers = Rc::clone(&headers);
            async move {
                let mut response = answer(way, request.uri().query().unwrap_or_default()).await;
                response.headers_mut().clone_from(&headers);
                Ok::<_, Infallible>(response)
            }
        })))
    })
}

async fn answer(way: Way, query: &str) -> Response<String> {
    let time = match milliseconds(query) {
        Ok(ms) => Duration::from_millis(ms),
        Err(reason) => {
            let mut response = Response::new(format!("{reason}\n"));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        }
    };
    match way {
        Way::Sleep => tokio::time::sleep(time).await,
        Way::Block => std::thread::sleep(time),
        Way::Burn => {
            let until = Instant::now() + time;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }
    Response::new(format!("{way:?} {} ms\n", time.as_millis()))
}

/// The time in `ms=50`; 0 when there is none.
fn milliseconds(query: &str) -> Result<u64, String> {
    let Some(text) = query.split('&').find_map(|pair| pair.strip_prefix("ms=")) else {
        return Ok(0);
    };
    match text.parse() {
        Ok(ms) if ms <= LONGEST_MS => Ok(ms),
        Ok(ms) => Err(format!("{ms} ms are too long (at most {LONGEST_MS})")),
        Err(_) => Err(format!(
            "`{}` is no number of milliseconds (write ?ms=50)",
            text.escape_debug()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn times_are_read_and_bounded() {
        assert_eq!(milliseconds(""), Ok(0));
        assert_eq!(milliseconds("a=b&ms=50"), Ok(50));
        assert!(milliseconds("ms=60001").is_err());
        assert!(milliseconds("ms=-1").is_err());
        assert!(milliseconds("ms=").is_err());
    }
}
