//! How the number of workers and their control groups are written.

use super::reader::{ConfigValue, InvalidValue, invalid};
use super::toml_text::quoted;
use super::types::Cgroups;
use prefork_protocol::Slot;
use std::path::PathBuf;
use std::str::FromStr;

/// A number of workers, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum WorkerCount {
    /// One per CPU that may be used.
    Auto,
    /// This many.
    Fixed(u16),
    /// As many as the load needs, between these two.
    Range(u16, u16),
}

impl ConfigValue for WorkerCount {
    type Resolved = Self;
    const EXAMPLE: &'static str = "8";
    const NUMBER: bool = true;
    const KEYWORDS: &'static [&'static str] = &["auto"];
    const RANGE: bool = true;

    fn read(text: &str) -> Result<Self, InvalidValue> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some((least, most)) = text.split_once("..") {
            return Self::range(text, least, most);
        }
        let most = Slot::MAX;
        let number: i128 = text.parse().map_err(|_| {
            invalid!(
                "`{text}` is no whole number (write one from 1 to {most}, a range like \
                2..16, or auto)"
            )
        })?;
        u16::try_from(number)
            .ok()
            .filter(|number| (1..=most).contains(number))
            .map(Self::Fixed)
            .ok_or_else(|| invalid!("{number} is out of range (1 to {most})"))
    }

    fn write(value: &Self) -> String {
        match value {
            Self::Auto => quoted("auto"),
            Self::Fixed(count) => count.to_string(),
            Self::Range(least, most) => quoted(format_args!("{least}..{most}")),
        }
    }
}

impl WorkerCount {
    fn range(text: &str, least: &str, most: &str) -> Result<Self, InvalidValue> {
        let end = |end: &str| -> Result<u16, InvalidValue> {
            let number: i128 = end
                .trim()
                .parse()
                .map_err(|_| invalid!("`{text}` is no range (write its two ends, like 2..16)"))?;
            u16::try_from(number)
                .ok()
                .filter(|number| (1..=Slot::MAX).contains(number))
                .ok_or_else(|| invalid!("{number} in {text} is out of range (1 to {})", Slot::MAX))
        };
        let (least, most) = (end(least)?, end(most)?);
        if least > most {
            return Err(invalid!(
                "{text} ends before it begins (write {most}..{least})"
            ));
        }
        Ok(Self::Range(least, most))
    }
}

/// A number of CPUs, in thousandths.
#[derive(Debug, Clone)]
pub(crate) struct Cpus;

impl ConfigValue for Cpus {
    type Resolved = u32;
    const EXAMPLE: &'static str = "\"1.5\"";

    fn read(text: &str) -> Result<u32, InvalidValue> {
        let wrong = || invalid!("`{text}` is no number of CPUs (write it like 2, 1.5 or 0.25)");
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
            return Err(invalid!("{text} is out of range (0.01 to 1024)"));
        }
        let thousandths = format!("{:.0}", number * 1000.0);
        thousandths.parse().map_err(|_| wrong())
    }

    fn write(value: &u32) -> String {
        quoted(f64::from(*value) / 1000.0)
    }
}

impl ConfigValue for Cgroups {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"auto\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') && !path.contains('\0') => {
                Ok(Self::Path(PathBuf::from(path)))
            }
            _ => Err(invalid!(
                "`{text}` is no control group (write auto, off, or a directory like \
                 /sys/fs/cgroup/web)"
            )),
        }
    }

    fn write(value: &Self) -> String {
        match value {
            Self::Auto => quoted("auto"),
            Self::Path(path) => quoted(path.display()),
            Self::Off => quoted("off"),
        }
    }
}
