/// What hexadecimal digits and white space mean, but for lines that begin with `#`, and anything else as it is.
fn decode(input: &[u8]) -> Vec<u8> {
    let lines = input.split(|byte| *byte == b'\n');
    let text = lines.filter(|line| !line.starts_with(b"#")).flatten();
    if !text.clone().all(|byte| byte.is_ascii_hexdigit() || byte.is_ascii_whitespace()) {
        return input.to_vec();
    }
    let digits: Vec<u8> = text
        .filter_map(|byte| char::from(*byte).to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
