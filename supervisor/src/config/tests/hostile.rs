//! Nothing that is typed makes a reader panic.

use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text in any::<String>()) {
        let _ = file(&text);
    }

    #[test]
    fn no_value_makes_the_reader_panic(
        lines in prop::collection::vec((0..SETTINGS.len() + 2, value()), 1..6),
    ) {
        let line = |(index, value): &(usize, String)| {
            let name = SETTINGS.get(*index).map_or("command".to_owned(), Setting::name);
            format!("{name} = {value}\n")
        };
        if let Err(message) = file(&lines.iter().map(line).collect::<String>()) {
            prop_assert!(message.starts_with("app.toml:"), "{}", message);
        }
    }

    #[test]
    fn no_text_makes_a_flag_or_variable_panic(index in 0..SETTINGS.len(), text in "\\PC{0,20}|[0-9a-zé,:/=%\\[\\]-]{0,20}") {
        let setting = &SETTINGS[index];
        let _ = args(&[&format!("--{}={text}", setting.name())]);
        let _ = env(&[(&setting.variable(), &text)]);
    }
}

/// A TOML value of any kind.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}").replace("NaN", "nan")),
        any::<bool>().prop_map(|yes| yes.to_string()),
        "[0-9]{1,30}",
        Just("1979-05-27T07:32:00Z".to_owned()),
        "[ -~é€]{0,12}".prop_map(|text| format!("{text:?}")),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|list| format!("[{}]", list.join(", "))),
            inner.prop_map(|value| format!("{{ a = {value} }}")),
        ]
    })
}
