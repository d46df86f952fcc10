//! Load from the command line: see `--help`. Prints one JSON object; exits with 1 when anything
//! failed, with 2 for wrong usage.

use std::process::ExitCode;
use std::time::Duration;
use testkit::Address;
use testkit::load::{self, Plan};

const HELP: &str = "\
Usage: loadclient [OPTIONS] TARGET
Opens connections at TARGET (HOST:PORT, [V6]:PORT or unix:PATH) and classifies every failure.

Shape of the load (default: --rate 1000)
  --rate N          open loop: N new connections a second
  --keep-alive N    N clients without think time that keep their connections
  --fresh N         N clients without think time, a new connection for each request
What is said (default: HTTP GET /)
  --path PATH       HTTP: what to ask for
  --mix PATH:SHARE  HTTP: what to ask for instead in this share of the requests, 0.05 say; latencies by path
  --expect TEXT     HTTP: what the body must be; with --send: what the answer must be
  --echo BYTES      raw: this many bytes that must come back
  --send TEXT       raw: ask TEXT, demand the answer of --expect and that the server closes
Bounds
  --duration TIME   seconds, fractions allowed (default: 10, unless --count is given)
  --count N         begin N requests
  --timeout TIME    seconds for connecting and for an answer (default: 10)
";

fn main() -> ExitCode {
    match plan(std::env::args().skip(1)) {
        Ok(Some(plan)) => {
            let report = load::run(&plan);
            println!("{}", report.to_json());
            for sample in &report.samples {
                eprintln!("{sample}");
            }
            ExitCode::from(u8::from(report.failed() > 0 || report.answered == 0))
        }
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("loadclient: {why} (try --help)");
            ExitCode::from(2)
        }
    }
}

fn plan(mut words: impl Iterator<Item = String>) -> Result<Option<Plan>, String> {
    let (mut rate, mut keep, mut fresh) = (None::<f64>, None::<usize>, None::<usize>);
    let (mut path, mut expect, mut echo, mut send) = (
        "/".to_owned(),
        None::<String>,
        None::<usize>,
        None::<String>,
    );
    let (mut duration, mut count, mut timeout) = (None::<f64>, None::<u64>, 10.0);
    let mut mix = None;
    let mut target = None;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--rate" => rate = Some(number(&word, &value()?)?),
            "--keep-alive" => keep = Some(number(&word, &value()?)?),
            "--fresh" => fresh = Some(number(&word, &value()?)?),
            "--path" => path = value()?,
            "--mix" => mix = Some(share_of(&value()?)?),
            "--expect" => expect = Some(value()?),
            "--echo" => echo = Some(number(&word, &value()?)?),
            "--send" => send = Some(value()?),
            "--duration" => duration = Some(number(&word, &value()?)?),
            "--count" => count = Some(number(&word, &value()?)?),
            "--timeout" => timeout = number(&word, &value()?)?,
            _ if word.starts_with('-') => return Err(format!("unknown option {word}")),
            _ if target.is_some() => return Err(format!("a second target `{word}`")),
            _ => target = Some(word.parse::<Address>()?),
        }
    }
    let target = target.ok_or("no target")?;
    let mut plan = match (rate, keep, fresh) {
        (None, None, None) => Plan::rate(&target, 1000.0),
        (Some(rate), None, None) if rate > 0.0 => Plan::rate(&target, rate),
        (None, Some(clients), None) => Plan::kept_alive(&target, clients),
        (None, None, Some(clients)) => Plan::fresh(&target, clients),
        _ => return Err("choose one of --rate (above 0), --keep-alive and --fresh".to_owned()),
    };
    plan = match (echo, send) {
        (None, None) => plan.http(&path, expect.as_deref()),
        (Some(bytes), None) => plan.echo(bytes),
        (None, Some(question)) => plan.ask(&question, &expect.ok_or("--send needs --expect")?),
        (Some(_), Some(_)) => return Err("choose one of --echo and --send".to_owned()),
    };
    if let Some((path, share)) = mix {
        plan = plan.mixed(&path, share);
    }
    if let Some(count) = count {
        plan = plan.count(count);
    }
    if let Some(seconds) = duration.or(count.is_none().then_some(10.0)) {
        plan = plan.lasting(seconds_of("--duration", seconds)?);
    }
    Ok(Some(plan.timeout(seconds_of("--timeout", timeout)?)))
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{option}: `{text}` is no number"))
}

fn share_of(text: &str) -> Result<(String, f64), String> {
    let (path, share) = text
        .rsplit_once(':')
        .ok_or("--mix needs PATH:SHARE, /slow:0.05 say")?;
    let share = number("--mix", share)?;
    if (0.0..=1.0).contains(&share) {
        Ok((path.to_owned(), share))
    } else {
        Err(format!("--mix: the share {share} is not between 0 and 1"))
    }
}

fn seconds_of(option: &str, seconds: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("{option}: {error}"))
}
