//! Header names of our own, in the lower case that HTTP/2 requires.

/// Revision of the policy in the answer.
pub const REVISION: &str = "neuwerk-revision";
/// Log index up to which the answering node had applied when it read locally.
pub const APPLIED_INDEX: &str = "neuwerk-applied-index";
/// Milliseconds since the answering node last heard from a leader; absent if it never did.
pub const LEADER_CONTACT_MS: &str = "neuwerk-leader-contact-ms";
/// `linearizable` if a backup holds every acknowledged change, `local` if no leader could say so.
pub const CONSISTENCY: &str = "neuwerk-consistency";
/// How many lints a policy has.
pub const LINT_COUNT: &str = "neuwerk-lint-count";
/// One lint, `path: message`; at most 16 are given this way.
pub const LINT: &str = "neuwerk-lint";
/// Names a request across the nodes that it went through.
pub const REQUEST_ID: &str = "x-request-id";
/// Makes the retry of a change safe: the same key never changes anything twice.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Members that a support archive has nothing of, separated by commas; absent if it has all.
pub const MISSING_MEMBERS: &str = "neuwerk-missing-members";
