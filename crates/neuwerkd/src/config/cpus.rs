//! Processors as an operator writes them: `2`, or `2-5`.

use std::fmt;

/// Numbers from here on name no processor: as many as fit into the kernel's set of them (sched_setaffinity(2)).
const MAX: u32 = 1024;

/// One processor, or several that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    first: u32,
    last: u32,
}

impl Cpus {
    /// Their numbers.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        self.first..=self.last
    }

    fn parse(text: &str) -> Option<Cpus> {
        let number = |text: &str| -> Option<u32> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|n| digits && *n < MAX)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some(Cpus { first, last })
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

super::value::text_value!(Cpus, "a processor or a range of them", "2 or 2-5", |text| {
    Cpus::parse(&text)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_its_ends() {
        let numbers = |text| Cpus::parse(text).map(|cpus| cpus.numbers().collect::<Vec<_>>());
        assert_eq!(numbers("3"), Some(vec![3]));
        assert_eq!(numbers("2-5"), Some(vec![2, 3, 4, 5]));
        assert_eq!(numbers("1023"), Some(vec![1023]));
        for text in ["", "-", "5-2", "1024", "1-", "-1", "+1", "1-2-3", "x"] {
            assert_eq!(numbers(text), None, "{text}");
        }
    }
}
