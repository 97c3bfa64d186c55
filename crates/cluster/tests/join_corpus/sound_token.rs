// What must hold for any text that somebody takes for a join token. Shared by the fuzz target and the replay of its corpus.

/// Panics if the text is not handled soundly.
fn sound_token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match cluster::join::token::Token::parse(text) {
        // What is read is written the same, and can sign.
        Ok(token) => {
            assert_eq!(&*token.text(), text.trim());
            let signature = token.sign(b"message");
            assert!(cluster::join::token::verify(&token.public(), b"message", &signature));
        }
        // What is wrong is told without telling what was there.
        Err(error) => {
            let told = error.to_string();
            assert!(text.len() < 24 || !told.contains(text.trim()));
        }
    }
}
