// What must hold for any bytes that a client may send. Shared by the fuzz target and the replay of its corpus.

/// Panics if a message is not handled soundly: passed over, or answered by a message that can be read, repeats the
/// id, and is not much longer than what was asked.
fn sound_query(message: &[u8]) {
    use dns::reply::{self, Denial, Extended, ExtendedCode};
    use dns::{Query, Rcode, Unfit};

    let mut out = Vec::new();
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Unfit::Silent) => return,
        Err(Unfit::Answer(problem)) => {
            reply::unfit(message, problem, &mut out);
            check_answer(message, &out, problem.rcode() as u16);
            assert!(out.len() <= message.len() + 11, "it is an amplifier");
            return;
        }
    };
    assert_eq!(query.question.len(), query.name.wire().len() + 4);
    assert!((512..=1232).contains(&query.udp_limit()));
    let text = query.name.to_string();
    assert!(text.is_ascii() && text.len() <= 4 * dns::name::MAX_NAME_BYTES);
    let reason = Extended {
        code: ExtendedCode::Blocked,
        text: &text,
    };
    reply::denied(&query, Denial::NxDomain, reason, &mut out);
    check_answer(message, &out, Rcode::NxDomain as u16);
    reply::denied(&query, Denial::Refused, reason, &mut out);
    check_answer(message, &out, Rcode::Refused as u16);
    reply::no_data(&query, Some(reason), &mut out);
    check_answer(message, &out, Rcode::NoError as u16);
    reply::error(&query, Rcode::ServFail, reason, &mut out);
    check_answer(message, &out, Rcode::ServFail as u16);
    reply::any(&query, &mut out);
    check_answer(message, &out, Rcode::NoError as u16);
}

fn check_answer(message: &[u8], answer: &[u8], rcode: u16) {
    assert!(answer.len() <= 512, "it fits into every datagram");
    assert_eq!(answer[..2], message[..2], "the id");
    let read = hickory_proto::op::Message::from_vec(answer).expect("our own answers can be read");
    assert_eq!(u16::from(read.response_code), rcode);
    // An answer is never taken for a query, by us or by others like us.
    assert_eq!(dns::Query::parse(answer).err(), Some(dns::Unfit::Silent));
}
