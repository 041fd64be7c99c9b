//! One HTML file for a plant engineer: plain words first, the numbers under them, nothing to download.

use std::fmt::Write as _;

use super::plot::{escape, plot};
use super::{Report, Scenario, seconds};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(crate) fn html(report: &Report) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    page.push_str("<title>MODAX: what was broken, and what came of it</title>\n<style>");
    page.push_str(STYLE);
    page.push_str("</style></head>\n<body>\n<h1>MODAX: what was broken, and what came of it</h1>\n");
    let _ = writeln!(
        page,
        "<p>A running plant control system was broken {} on purpose while four devices measured, and an operator \
         sent a command five times a second. This page shows what stopped, for how long, and whether anything was \
         lost.</p>",
        times(report.scenarios.len())
    );
    verdict(&mut page, report);
    tiles(&mut page, report);
    table(&mut page, report);
    timeline(&mut page, report);
    page.push_str("<h2>What happened, one by one</h2>\n");
    for (index, scenario) in report.scenarios.iter().enumerate() {
        story(&mut page, index + 1, scenario);
    }
    words(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

fn times(count: usize) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        6 => "six times".to_owned(),
        _ => format!("{count} times"),
    }
}

fn verdict(page: &mut String, report: &Report) {
    let broken = report.all_broken();
    if report.passed() {
        page.push_str(
            "<div class=\"verdict\"><strong>Passed.</strong> Every time limit held. No reading was lost, none was \
             stored twice, no command was carried out twice.</div>\n",
        );
        return;
    }
    page.push_str("<div class=\"verdict bad\"><strong>Not passed.</strong> This did not hold:<ul>");
    for what in broken {
        let _ = write!(page, "<li>{}</li>", escape(&what));
    }
    page.push_str("</ul></div>\n");
}

fn tiles(page: &mut String, report: &Report) {
    let totals = &report.totals;
    let longest = report.scenarios.iter().filter_map(|scenario| scenario.recovered_ms).max();
    let tiles = [
        (grouped(totals.readings_owed), "readings the devices were promised"),
        (grouped(totals.counts.lost), "of them lost"),
        (grouped(totals.counts.duplicated), "readings or commands doubled"),
        (grouped(totals.commands_accepted), "commands accepted"),
        (grouped(totals.commands_acted), "commands carried out"),
        (seconds(longest), "longest time until all worked again"),
    ];
    page.push_str("<div class=\"tiles\">");
    for (number, words) in tiles {
        let _ = write!(page, "<div class=\"tile\"><b>{number}</b><span>{words}</span></div>");
    }
    page.push_str("</div>\n");
    if !totals.not_acted.is_empty() {
        page.push_str("<p>Accepted commands that were not carried out, which is right once they are too old or the plant is not safe:");
        for (index, (end, count)) in totals.not_acted.iter().enumerate() {
            let _ = write!(page, "{} {} “{}”", if index == 0 { "" } else { "," }, grouped(*count), escape(end));
        }
        page.push_str(".</p>\n");
    }
}

fn table(page: &mut String, report: &Report) {
    page.push_str(
        "<h2>The table</h2>\n<div class=\"scroll\"><table><thead><tr><th></th><th>What was broken</th>\
         <th>Noticed after</th><th>Working again after</th><th>Allowed</th><th>Lost</th><th>Doubled</th>\
         <th>Out of order</th><th>Requests failed</th><th>Refused as unsafe</th><th>Result</th></tr></thead><tbody>",
    );
    for (index, scenario) in report.scenarios.iter().enumerate() {
        let counts = scenario.counts;
        let (class, result) = if scenario.broken.is_empty() { ("good", "held") } else { ("bad", "not held") };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td class=\"{class}\">{result}</td></tr>",
            index + 1,
            escape(&scenario.title),
            seconds(scenario.detected_ms),
            seconds(scenario.recovered_ms),
            scenario.bound_ms.map_or_else(|| "no limit".to_owned(), |bound| seconds(Some(bound))),
            counts.lost,
            counts.duplicated,
            counts.reordered,
            counts.failed_requests,
            counts.refused_unsafe,
        );
    }
    page.push_str("</tbody></table></div>\n");
}

fn timeline(page: &mut String, report: &Report) {
    page.push_str("<h2>The timeline</h2>\n<div class=\"legend\">");
    let states = [
        ("working", "working"),
        ("leading", "working, in the lead (the database that takes writes)"),
        ("impaired", "running, not fully able"),
        ("down", "stopped by us, or not answering"),
    ];
    for (colour, words) in states {
        let _ = write!(page, "<span><i style=\"background:var(--{colour})\"></i>{words}</span>");
    }
    for (colour, words) in [("down", "broken"), ("impaired", "noticed"), ("good", "working again")] {
        let _ = write!(page, "<span><i class=\"bar\" style=\"background:var(--{colour})\"></i>{words}</span>");
    }
    page.push_str("</div>\n<div class=\"scroll\">");
    page.push_str(&plot(report));
    page.push_str(
        "</div>\n<p>Each numbered band is one row of the table, from the moment something was broken until \
                   everything ran again. Point at a bar or a line to read its times.</p>\n",
    );
}

fn story(page: &mut String, number: usize, scenario: &Scenario) {
    let _ = write!(page, "<div class=\"story\"><h3>{number}. {}</h3>", escape(&scenario.title));
    for sentence in &scenario.story {
        let _ = write!(page, "<p>{}</p>", escape(sentence));
    }
    let noticed = match scenario.detected_ms {
        Some(_) => format!("Noticed first by {}, after {}.", scenario.detected_by, seconds(scenario.detected_ms)),
        None => "Nobody noticed a failure.".to_owned(),
    };
    let again = match scenario.recovered_ms {
        Some(_) => format!("Working again after {}, measured by: {}.", seconds(scenario.recovered_ms), scenario.probed),
        None => format!("Not seen to work again, measured by: {}.", scenario.probed),
    };
    let _ = write!(page, "<p class=\"meta\">{} {}</p>", escape(&noticed), escape(&again));
    for what in &scenario.broken {
        let _ = write!(page, "<p><b>Did not hold:</b> {}</p>", escape(what));
    }
    page.push_str("</div>\n");
}

fn words(page: &mut String, report: &Report) {
    page.push_str("<h2>What the words mean</h2>\n<dl>");
    let words = [
        (
            "Lost",
            "A reading that the message broker had confirmed to a device, or that the device still held at the end, and that is not in the database 30 seconds after everything ran again.",
        ),
        (
            "Doubled",
            "A reading that stands in the database more than once, or a command that a device carried out more than once.",
        ),
        ("Out of order", "A command that reached the devices before one that had been given earlier."),
        (
            "Requests failed",
            "Requests of the operator and of the probes that got no answer, or a server error. The operator repeats such a command under the same key, so that it is one command.",
        ),
        (
            "Refused as unsafe",
            "Commands refused because the state of the plant was not known freshly enough. This is intended: without a recent safety report, no command goes out.",
        ),
        ("Noticed", "The first sign of trouble that a program reported, counted from the moment of the fault."),
        (
            "Working again",
            "The first success of a probe that uses the broken function ten times a second, after its last failure.",
        ),
    ];
    for (word, meaning) in words {
        let _ = write!(page, "<dt>{word}</dt><dd>{meaning}</dd>");
    }
    page.push_str("</dl>\n");
    if !report.settings.is_empty() {
        page.push_str("<h2>Settings of this run</h2>\n<ul>");
        for setting in &report.settings {
            let _ = write!(page, "<li>{}</li>", escape(setting));
        }
        page.push_str("</ul>\n");
    }
    let totals = &report.totals;
    let _ = writeln!(
        page,
        "<p>The run took {:.0} seconds. Devices were restarted {} times. {} requests were made, {} readings stand in \
         the database.</p>",
        totals.seconds,
        totals.device_reboots,
        grouped(totals.requests),
        grouped(totals.readings_stored),
    );
}

/// Thousands set apart: 28,402.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::fixture;
    use super::*;

    #[test]
    fn the_page_is_one_file_and_says_plainly_what_happened() {
        let page = html(&fixture());

        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
        assert!(page.contains("<strong>Passed.</strong>"));
        for scenario in &fixture().scenarios {
            assert!(page.matches(&escape(&scenario.title)).count() >= 2, "{}", scenario.title);
        }
        let directory = std::env::var_os("MODAX_REPORT_FIXTURE");
        if let Some(directory) = directory {
            std::fs::write(directory, page).unwrap();
        }
    }

    #[test]
    fn a_broken_bound_stands_at_the_top() {
        let mut report = fixture();
        report.scenarios[0].broken.push("took <12 s>".to_owned());

        let page = html(&report);

        assert!(page.contains("Not passed."));
        assert!(page.contains("One control layer killed: took &lt;12 s&gt;"));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([grouped(7), grouped(999), grouped(1000), grouped(28_402)], ["7", "999", "1,000", "28,402"]);
    }
}
