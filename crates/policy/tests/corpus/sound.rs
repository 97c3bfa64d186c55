// What must hold for any bytes given as a policy document. Shared by the fuzz target and the
// replay of its corpus.

/// Panics if the bytes are not handled soundly: refused with a reason, or read into a document
/// that survives being written, lints, and compiles or says why not.
fn sound(input: &[u8]) {
    for parsed in [
        policy::Document::parse_json(input),
        policy::Document::parse_yaml(input),
    ] {
        match parsed {
            Err(invalid) => assert!(!invalid.problems.is_empty(), "refused without a reason"),
            Ok(document) => {
                let json = document.to_json();
                assert_eq!(policy::Document::parse_json(&json).as_ref(), Ok(&document));
                let yaml = document.to_yaml();
                let back = policy::Document::parse_yaml(yaml.as_bytes());
                assert_eq!(back.as_ref(), Ok(&document), "{yaml}");
                let _ = document.lint();
                match policy::Compiled::compile(&document, 1) {
                    Ok(compiled) => assert_eq!(compiled.group_count(), document.source_groups.len()),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }
}
