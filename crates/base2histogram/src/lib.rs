//! Stands in for the published crate of this name, as far as openraft uses it.
//!
//! openraft counts the sizes of its batches in histograms that nothing here shows. The published crate computes
//! tables for sixteen resolutions as soon as there is one histogram, 24 MiB that stay resident in every node; this
//! needs 520 bytes a histogram. Buckets are powers of two, so that a percentile may be up to twice too small.
//! `Cargo.toml` of the workspace puts it in the other's place; it can go once the published one computes only what is
//! used.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// Bucket 0 counts zeros, bucket n the values from 2^(n-1) up to 2^n.
const BUCKETS: usize = u64::BITS as usize + 1;

/// How often values of each size occurred. The published one can also tag periods, with values of type `T`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    tag: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            tag: PhantomData,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value that occurred `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        if let Some(bucket) = self.counts.get_mut(bucket(value)) {
            *bucket = bucket.saturating_add(count);
        }
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |total, count| total.saturating_add(*count))
    }

    /// The lower bound of the bucket in which the quantile of `per_mille` thousandths lies; 0 if nothing was counted.
    fn quantile(&self, per_mille: u64) -> u64 {
        let rank = self.total().saturating_mul(per_mille).div_ceil(1000).max(1);
        let mut seen = 0u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return least(bucket);
            }
        }
        0
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.quantile(1),
            p1: self.quantile(10),
            p5: self.quantile(50),
            p10: self.quantile(100),
            p50: self.quantile(500),
            p90: self.quantile(900),
            p99: self.quantile(990),
            p99_9: self.quantile(999),
        }
    }
}

fn bucket(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

fn least(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        _ => 1 << (bucket - 1),
    }
}

/// Percentiles of what a [`Histogram`] counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// A thousandth of them is at most this.
    pub p0_1: u64,
    /// A hundredth.
    pub p1: u64,
    /// A twentieth.
    pub p5: u64,
    /// A tenth.
    pub p10: u64,
    /// Half.
    pub p50: u64,
    /// Nine tenths.
    pub p90: u64,
    /// All but a hundredth.
    pub p99: u64,
    /// All but a thousandth.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            samples,
            p50,
            p90,
            p99,
            ..
        } = self;
        write!(f, "{samples} samples, P50 {p50}, P90 {p90}, P99 {p99}")
    }
}

/// Several histograms, one line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// One without lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more line.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.lines.push((name.into(), histogram.percentile_stats()));
        self
    }

    /// The chart itself, which has only one form.
    pub fn detailed(&self) -> &Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.lines {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_twice_too_small() {
        let mut histogram = Histogram::<()>::new();
        for value in 1..=1000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        for (told, real) in [(stats.p1, 10), (stats.p50, 500), (stats.p99_9, 999)] {
            assert!(told <= real && real < 2 * told, "{told} for {real}");
        }
    }

    #[test]
    fn every_value_has_a_bucket() {
        for value in [0, 1, 2, 3, u64::MAX] {
            let mut histogram = Histogram::<()>::new();
            histogram.record_n(value, 2);
            assert_eq!(histogram.total(), 2);
            let told = histogram.percentile_stats().p50;
            assert!(told <= value && value / 2 <= told, "{told} for {value}");
        }
        assert_eq!(Histogram::<()>::new().percentile_stats().p99, 0);
    }

    #[test]
    fn counts_do_not_overflow() {
        let mut histogram = Histogram::<()>::new();
        histogram.record_n(1, u64::MAX);
        histogram.record_n(1, 1);
        histogram.record_n(4, 1);
        assert_eq!(histogram.total(), u64::MAX);
    }

    #[test]
    fn a_chart_names_its_lines() {
        let mut histogram = Histogram::<()>::new();
        histogram.record(5);
        let chart = AsciiChart::new().add("appended", histogram);
        let text = chart.detailed().to_string();
        assert_eq!(text, "appended: 1 samples, P50 4, P90 4, P99 4\n");
    }
}
