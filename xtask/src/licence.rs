//! Whether an SPDX licence expression can be satisfied by the licences on a list.

/// Evaluates `expression`: one side of an `OR` (or the older `/`) suffices, of an `AND` both are needed.
pub(crate) fn is_allowed(expression: &str, allowed: &impl Fn(&str) -> bool) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        tokens: &tokens,
        allowed,
    };
    parser
        .either()
        .is_some_and(|satisfied| satisfied && parser.tokens.is_empty())
}

struct Parser<'a, F> {
    tokens: &'a [&'a str],
    allowed: &'a F,
}

impl<'a, F: Fn(&str) -> bool> Parser<'a, F> {
    fn either(&mut self) -> Option<bool> {
        let mut satisfied = self.both()?;
        while self.take("OR") {
            satisfied |= self.both()?;
        }
        Some(satisfied)
    }

    fn both(&mut self) -> Option<bool> {
        let mut satisfied = self.one()?;
        while self.take("AND") {
            satisfied &= self.one()?;
        }
        Some(satisfied)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let satisfied = self.either()?;
            return self.take(")").then_some(satisfied);
        }
        let licence = self.next()?;
        if self.take("WITH") {
            let exception = self.next()?;
            return Some((self.allowed)(&format!("{licence} WITH {exception}")));
        }
        Some((self.allowed)(licence))
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.tokens.first() == Some(&token);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        (!matches!(*first, "OR" | "AND" | "WITH" | ")")).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_satisfied_by_what_is_on_the_list() {
        check("MIT", true);
        check("GPL-3.0", false);
        check("GPL-3.0 OR MIT", true);
        check("GPL-3.0/MIT", true);
        check("MIT AND ISC", true);
        check("MIT AND GPL-3.0", false);
        check("ISC AND (GPL-3.0 OR ISC)", true);
        check("(GPL-3.0 OR MIT) AND AGPL-3.0", false);
        check("GPL-3.0 AND ISC OR MIT", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("Apache-2.0 WITH other", false);
    }

    #[test]
    fn what_is_no_expression_is_not_allowed() {
        check("", false);
        check("MIT OR", false);
        check("(MIT", false);
        check("MIT ISC", false);
    }

    fn check(expression: &str, expected: bool) {
        let list = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
        assert_eq!(
            is_allowed(expression, &|licence| list.contains(&licence)),
            expected,
            "{expression}"
        );
    }
}
