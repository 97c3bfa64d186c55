/// What hexadecimal digits and white space mean, and anything else as it is.
fn decode(input: &[u8]) -> Vec<u8> {
    let text = input.iter().all(|byte| byte.is_ascii_hexdigit() || byte.is_ascii_whitespace());
    if !text {
        return input.to_vec();
    }
    let digits: Vec<u8> = input
        .iter()
        .filter_map(|byte| char::from(*byte).to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
