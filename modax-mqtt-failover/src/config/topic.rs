//! Which topics can be published to, and which filters subscribed to.

/// Levels of a filter: mosquitto closes the connection on one with more than 200 separators, and EMQX takes 128 levels.
const MAX_LEVELS: usize = 200;

/// What is wrong with a topic or a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// Empty.
    #[error("is empty")]
    Empty,
    /// More than 65535 bytes.
    #[error("is longer than 65535 bytes")]
    TooLong,
    /// One of more than 65535 user properties.
    #[error("is one of more than 65535")]
    TooMany,
    /// A NUL character (MQTT 3.1.1, 4.7.3).
    #[error("holds a NUL character")]
    Nul,
    /// A control character or a non-character in a filter. Brokers may close the connection on one (MQTT 3.1.1, 1.5.3), and
    /// a wish is asked for again on each connection: none would last. A topic may hold them.
    #[error("holds a control character or a non-character")]
    Control,
    /// A filter of more than 200 levels. Brokers may close the connection on one, on each connection again.
    #[error("has more than 200 levels")]
    TooDeep,
    /// A wildcard in a topic, or one in the wrong place of a filter (MQTT 3.1.1, 4.7.1).
    #[error("has a wildcard where none is allowed")]
    Wildcard,
    /// It begins like a shared subscription and is none (MQTT 5, 4.8.2).
    #[error("is not $share/GROUP/FILTER")]
    Share,
}

/// Checks a topic to publish to.
///
/// # Errors
/// [`TopicError`] says what is wrong.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    check_text(topic)?;
    if topic.contains(['+', '#']) { Err(TopicError::Wildcard) } else { Ok(()) }
}

/// Checks a filter to subscribe to.
///
/// # Errors
/// [`TopicError`] says what is wrong.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    check_text(filter)?;
    if filter.contains(|character: char| character.is_control() || is_non_character(character)) {
        return Err(TopicError::Control);
    }
    if filter.split('/').count() > MAX_LEVELS {
        return Err(TopicError::TooDeep);
    }
    let filter = match filter.strip_prefix("$share/").map(|shared| shared.split_once('/')) {
        None => filter,
        Some(Some((group, shared))) if !group.is_empty() && !group.contains(['+', '#']) && !shared.is_empty() => shared,
        Some(_) => return Err(TopicError::Share),
    };
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let misplaced_plus = level.contains('+') && level != "+";
        let misplaced_hash = level.contains('#') && (level != "#" || levels.peek().is_some());
        if misplaced_plus || misplaced_hash {
            return Err(TopicError::Wildcard);
        }
    }
    Ok(())
}

/// Unicode's own: 32 in a row, and the last two of each plane.
fn is_non_character(character: char) -> bool {
    matches!(character, '\u{fdd0}'..='\u{fdef}') || u32::from(character) & 0xfffe == 0xfffe
}

fn check_text(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    if text.contains('\0') {
        return Err(TopicError::Nul);
    }
    Ok(())
}
