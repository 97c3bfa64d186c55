//! All regular expressions of a document as one automaton.
//!
//! It runs over a name from its end, where names differ: after a few bytes nearly all expressions
//! have failed. Its states are worked out when a name first leads there and are kept in a cache of
//! bounded size, so a lookup costs a few nanoseconds a byte once the cache is warm, whether there are
//! ten expressions or a thousand, and never more than a step of all of them for each byte.

use std::panic::{RefUnwindSafe, UnwindSafe};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{NFA, WhichCaptures};
use regex_automata::util::pool::Pool;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};

use super::regex::{MAX_REGEX_TOTAL_BYTES, syntax, whole};

/// Memory for the states of one thread. Raised by the library where the expressions are so many that
/// it would not hold a handful of states.
const CACHE_BYTES: usize = 8 << 20;

type MakeCache = Box<dyn Fn() -> Cache + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct RegexSet {
    dfa: DFA,
    caches: Pool<Cache, MakeCache>,
    /// The values of each expression, in ascending order.
    values: Vec<Box<[u32]>>,
}

impl RegexSet {
    /// Compiles expressions that have passed [`super::RegexBudget`], each with its values in ascending
    /// order. None if there are none.
    pub(crate) fn build(patterns: Vec<(&str, Vec<u32>)>) -> Option<Self> {
        if patterns.is_empty() {
            return None;
        }
        let wrapped: Vec<String> = patterns.iter().map(|(text, _)| whole(text)).collect();
        // Backwards it may become another size than each was measured with, but not by much.
        let nfa = NFA::compiler()
            .syntax(syntax())
            .configure(
                NFA::config()
                    .utf8(false)
                    .reverse(true)
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(4 * MAX_REGEX_TOTAL_BYTES)),
            )
            .build_many(&wrapped)
            .expect("each was compiled when the document was read");
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    // Names are ASCII, so what Unicode says of other bytes does not matter.
                    .unicode_word_boundary(true)
                    .cache_capacity(CACHE_BYTES)
                    .skip_cache_capacity_check(true),
            )
            .build_from_nfa(nfa)
            .expect("the cache is as large as it needs to be");
        let make = dfa.clone();
        Some(Self {
            caches: Pool::new(Box::new(move || make.create_cache())),
            dfa,
            values: patterns
                .into_iter()
                .map(|(_, values)| values.into_boxed_slice())
                .collect(),
        })
    }

    /// Calls `f` with the values of each expression that matches all of `name`, which is ASCII and
    /// without the final dot.
    pub(crate) fn matching<'s>(&'s self, name: &str, mut f: impl FnMut(&'s [u32])) {
        const BOUNDED: &str = "the cache is told to start afresh when it is full";
        let mut guard = self.caches.get();
        let cache = &mut *guard;
        let start = start::Config::new().anchored(Anchored::Yes);
        let mut state = self.dfa.start_state(cache, &start).expect(BOUNDED);
        for byte in name.bytes().rev() {
            state = self.dfa.next_state(cache, state, byte).expect(BOUNDED);
            if state.is_dead() || state.is_quit() {
                return;
            }
        }
        let end = self.dfa.next_eoi_state(cache, state).expect(BOUNDED);
        if !end.is_match() {
            return;
        }
        for i in 0..self.dfa.match_len(cache, end) {
            f(&self.values[self.dfa.match_pattern(cache, end, i)]);
        }
    }

    /// Bytes on the heap, without what threads keep of states.
    pub(crate) fn memory_bytes(&self) -> usize {
        let values: usize = self.values.iter().map(|v| size_of_val(&**v)).sum();
        self.dfa.memory_usage() + self.dfa.get_nfa().memory_usage() + values
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::HostnameRegex;
    use super::*;

    fn matching(patterns: &[&str], name: &str) -> Vec<u32> {
        let set = RegexSet::build((0..).zip(patterns).map(|(i, p)| (*p, vec![i])).collect());
        let mut all = Vec::new();
        if let Some(set) = set {
            set.matching(name, |values| all.extend_from_slice(values));
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn whole_names_match() {
        let patterns = [
            r"api\.example\.com",
            "api.example.com",
            r"^(.*\.)?example\.com$",
            "a|ab",
            r"\bapi\b.*",
            r"(?u)\bapi\b.*",
            "",
            "(?m)^a$",
        ];
        let patterns = &patterns;
        #[track_caller]
        fn check(patterns: &[&str], name: &str, want: &[u32]) {
            assert_eq!(matching(patterns, name), want, "{name}");
        }
        check(patterns, "api.example.com", &[0, 1, 2, 4, 5]);
        check(patterns, "API.Example.COM", &[0, 1, 2, 4, 5]);
        check(patterns, "api-example.com", &[1, 4, 5]);
        check(patterns, "example.com", &[2]);
        check(patterns, "badexample.com", &[]);
        check(patterns, "api.example.com.evil.net", &[4, 5]);
        check(patterns, "ab", &[3]);
        check(patterns, "a", &[3, 7]);
        check(patterns, "", &[6]);
        check(patterns, "apia", &[]);
        check(&[], "a", &[]);
    }

    #[test]
    fn a_full_cache_starts_afresh() {
        let patterns: Vec<String> = (0..40)
            .map(|i| format!(r"[a-z]{{1,20}}{i}[a-z0-9]*\.(.*\.)?example\.com"))
            .collect();
        let texts: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let set = RegexSet::build((0..).zip(&texts).map(|(i, p)| (*p, vec![i])).collect()).unwrap();
        let dfa = DFA::builder()
            .configure(
                set.dfa
                    .get_config()
                    .clone()
                    .cache_capacity(0)
                    .skip_cache_capacity_check(true),
            )
            .build_from_nfa(set.dfa.get_nfa().clone())
            .unwrap();
        let make = dfa.clone();
        let small = RegexSet {
            caches: Pool::new(Box::new(move || make.create_cache())),
            dfa,
            values: set.values.clone(),
        };
        for i in 0..2000_u32 {
            let name = format!("x{}y{i}z.example.com", i % 50);
            let (mut a, mut b) = (Vec::new(), Vec::new());
            set.matching(&name, |values| a.extend_from_slice(values));
            small.matching(&name, |values| b.extend_from_slice(values));
            assert_eq!(a, b, "{name}");
        }
        assert!(small.caches.get().clear_count() > 0);
    }

    const PATTERNS: [&str; 14] = [
        "a",
        "[ab]+",
        r"(.*\.)?a\.b",
        r".*\.b",
        r"^a.*",
        "b$",
        "a.b",
        r"\w+\.\w+",
        "(a|b){2,3}",
        r".*\ba\b.*",
        r"[^.]+\.[^.]+",
        "A.*B",
        ".*",
        r"(?i-u:a\.)+b",
    ];

    proptest! {
        #[test]
        fn agrees_with_one_at_a_time(
            patterns in prop::collection::vec(select(&PATTERNS[..]), 1..10),
            names in prop::collection::vec("[ab.\\\\0-]{0,8}", 1..8),
        ) {
            for name in &names {
                let want: Vec<u32> = (0..)
                    .zip(&patterns)
                    .filter(|(_, p)| HostnameRegex::compile(p).unwrap().is_match(name))
                    .map(|(i, _)| i)
                    .collect();
                prop_assert_eq!(matching(&patterns, name), want, "{:?} on {}", patterns, name);
            }
        }
    }
}
