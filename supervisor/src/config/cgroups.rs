//! How the number of workers and their control groups are written.

use super::Cgroups;
use super::reader::Word;
use prefork_protocol::Slot;
use std::path::PathBuf;
use std::str::FromStr;

/// A number of workers, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum WorkerCount {
    /// One per CPU that may be used.
    Auto,
    /// So many.
    Fixed(u16),
    /// As many as the load needs, between these two.
    Range(u16, u16),
}

impl Word for WorkerCount {
    const LIKE: &'static str = "8";
    const NUMBER: bool = true;
    const WORDS: &'static [&'static str] = &["auto"];
    const DOTTED: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some((least, most)) = text.split_once("..") {
            return Self::range(text, least, most);
        }
        let most = Slot::MAX;
        let number: i128 = text.parse().map_err(|_| {
            format!("`{text}` is no whole number (write one from 1 to {most}, a range like 2..16, or auto)")
        })?;
        u16::try_from(number)
            .ok()
            .filter(|number| (1..=most).contains(number))
            .map(Self::Fixed)
            .ok_or_else(|| format!("{number} is out of range (1 to {most})"))
    }
}

impl WorkerCount {
    fn range(text: &str, least: &str, most: &str) -> Result<Self, String> {
        let end = |end: &str| -> Result<u16, String> {
            let number: i128 = end
                .trim()
                .parse()
                .map_err(|_| format!("`{text}` is no range (write its two ends, like 2..16)"))?;
            u16::try_from(number)
                .ok()
                .filter(|number| (1..=Slot::MAX).contains(number))
                .ok_or_else(|| format!("{number} in {text} is out of range (1 to {})", Slot::MAX))
        };
        let (least, most) = (end(least)?, end(most)?);
        if least > most {
            return Err(format!(
                "{text} ends before it begins (write {most}..{least})"
            ));
        }
        Ok(Self::Range(least, most))
    }
}

/// A number of CPUs, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cpus(pub(crate) u32);

impl Word for Cpus {
    const LIKE: &'static str = "\"1.5\"";

    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no number of CPUs (write it like 2, 1.5 or 0.25)");
        let plain = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        let number = if plain {
            f64::from_str(text).map_err(|_| wrong())?
        } else {
            return Err(wrong());
        };
        // The kernel's shortest quota is a hundredth of its usual period.
        if !(0.01..=1024.0).contains(&number) {
            return Err(format!("{text} is out of range (0.01 to 1024)"));
        }
        Ok(Self((number * 1000.0).round() as u32))
    }
}

impl Word for Cgroups {
    const LIKE: &'static str = "\"auto\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') && !path.contains('\0') => {
                Ok(Self::Path(PathBuf::from(path)))
            }
            _ => Err(format!(
                "`{text}` is no control group (write auto, off, or a directory like /sys/fs/cgroup/web)"
            )),
        }
    }
}
