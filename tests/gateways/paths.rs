//! Paths that a gateway and an application might interpret in different ways, and a function that
//! computes every way in which an application may interpret a path.

use std::collections::BTreeSet;

/// The areas of the examples that demand more than a live session.
pub const AREAS: [&str; 2] = ["/api", "/account"];

/// Ways to write a step to the parent segment. Some applications interpret them as such a step, and
/// others do not.
const STEPS: [&str; 47] = [
    "/../",
    "/%2e%2e/",
    "/%2E%2E/",
    "/%2e%2E/",
    "/.%2e/",
    "/.%2E/",
    "/%2e./",
    "/%2E./",
    "/./../",
    "/%2e/../",
    "/..//",
    "//../",
    "///..//",
    "/..;/",
    "/..;x=1/",
    "/;/../",
    "/;x=1/%2e%2e/",
    "/..%3b/",
    "/..%3Bx/",
    "/%2e%2e;/",
    "/..%2f",
    "/..%2F",
    "%2f../",
    "%2F..%2F",
    "/%2e%2e%2f",
    "/.%2e%2f",
    "/..\\",
    "\\../",
    "\\..\\",
    "/..%5c",
    "%5C..%5C",
    "%5c%2e%2e/",
    "/%2e%2e%5C",
    "/%252e%252e/",
    "/%252E%252E/",
    "/..%252f",
    "%252f..%252f",
    "/%252e%252e%252f",
    "/..%255c",
    "/..%253b/",
    "/%25%32%65%25%32%65/",
    "/..%00/",
    "/.%00./",
    "/..%09/",
    "/..%0a/",
    "/.\t./",
    "/%u002e%u002e/",
];

/// Paths in which `STEP` is replaced by each of [`STEPS`].
const SHAPES: [&str; 6] = [
    "/xSTEPapi/orders",
    "/accountSTEPapi/orders",
    "/apiSTEPaccount/x",
    "/api/ordersSTEP../x",
    "/ACCOUNT/xSTEP../%61pi/orders",
    "http://app.test/xSTEPapi/orders",
];

/// Other paths that some application interprets as one below `/api` or `/account`.
const OTHERS: [&str; 116] = [
    // Plain paths, in any case, with and without a slash at the end, with needless escapes.
    "/api",
    "/api?x",
    "/api/",
    "/API/orders",
    "/Api/orders",
    "/%61pi/orders",
    "/%61%70%69/orders",
    "/%41PI/orders",
    "/account",
    "/account?x",
    "/ACCOUNT/",
    // Empty segments and dot segments.
    "/api//orders",
    "//api/orders",
    "///api/orders",
    "//x/api/orders",
    "//app.test/api/orders",
    "/account//",
    "/./api/orders",
    "/%2e/api/orders",
    "/%2E/api/orders",
    "/.;/api/orders",
    "/../api/orders",
    "/..;/api/orders",
    "/%2e%2e/api/orders",
    "/..%2fapi/orders",
    "/..\\api/orders",
    "/api/../api/orders",
    "/api/orders/../../x",
    "/api/orders/%2e%2e/%2e%2e/x",
    "/account/../x",
    "/api/.",
    "/api/..",
    "/api/%2e%2e",
    "/x/../api",
    "/x/../../api",
    "/api/x/../../account/x",
    "/x%2f../%2e%2e/api/orders",
    // Encoded slashes, and backslashes.
    "/api%2forders",
    "/api%2Forders",
    "/%2fapi/orders",
    "/%2Fapi/orders",
    "/%2f%61pi/orders",
    "/api%5corders",
    "/api%5Corders",
    "/%5capi/orders",
    "/\\api\\orders",
    "/api\\orders",
    "\\api\\orders",
    "/\\app.test/api/orders",
    "/api%u002forders",
    // Path parameters.
    "/api;x/orders",
    "/api;x=1/orders",
    "/api;",
    "/account;x/",
    "/;/api/orders",
    "/;x=1/api/orders",
    "/api%3bx/orders",
    "/api%3Bx",
    "/%3b/api/orders",
    // Double encoding, and invalid encoding.
    "/%2561pi/orders",
    "/%25%36%31pi/orders",
    "/api/%2561",
    "/api%252forders",
    "/%u0061pi/orders",
    "/api/%zz",
    "/api/%",
    "/api/%2",
    "/api/orders%zz",
    "/%61pi/%zz",
    "/%61pi/%",
    "/ACCOUNT/%g0",
    // Characters at which a path may end.
    "/api%3fx",
    "/api%3Fx/orders",
    "/api%23x",
    "/api#x",
    "/api/orders#x",
    "/api%253fx",
    "/x#/../api/orders",
    "/#/../api/orders",
    // Bytes that some applications leave out, and at which others stop.
    "/api%00",
    "/api%00/orders",
    "/api%00x",
    "/a%00pi/orders",
    "/api%01/orders",
    "/api%09/orders",
    "/api%0a/orders",
    "/api%0d%0a/orders",
    "/api%1F",
    "/api%7f/orders",
    "/%0aapi/orders",
    "/a\tpi/orders",
    "/a\u{1}pi/orders",
    "/api\0/orders",
    "/api\u{7f}/orders",
    // Targets that are not a path.
    "http://app.test/api/orders",
    "HTTP://app.test/api/orders",
    "https://app.test/%61pi/orders",
    "http://app.test//api/orders",
    "http://app.test/./api/orders",
    "http://app.test/api/orders/../../x",
    "http://app.test/api/%zz",
    "http://app.test\\api/orders",
    "http://app.test\\api/orders/x",
    "http://app.test%2fapi/orders/x",
    "http://app.test;/api/orders",
    "http://app.test#/api/orders",
    "http://x@app.test/api/orders",
    "http:///api/orders",
    "http:/api/orders",
    "http:api/orders",
    "x:api/orders",
    "x:/api/orders",
    "api/orders",
    "./api/orders",
    "../api/orders",
    "%2fapi/orders",
];

/// Methods and targets that no application interprets as a path. They must not reach an area
/// either.
const NO_PATHS: [(&str, &str); 9] = [
    ("OPTIONS", "*"),
    ("GET", "*"),
    ("GET", "app.test:80"),
    ("CONNECT", "app.test:80"),
    ("CONNECT", "app.test"),
    ("GET", "?/api/orders"),
    ("GET", ";/api"),
    ("GET", "http://app.test?/api/orders"),
    ("GET", "http://app.test?/../api/orders"),
];

/// Harmless paths, which must reach the application.
pub const HARMLESS: [&str; 29] = [
    "/",
    "/x",
    "/x/",
    "/api/orders/v1.2/file..txt",
    "/api/orders/...",
    "/..x/.y/z..",
    "/.well-known/x",
    "/api./x",
    "/apiary",
    "/account/.x",
    "/a%20b/c%20",
    "/%C3%A4/%e2%82%ac",
    "/api/orders/%C3%A4%20b",
    "/api%20x",
    "/~a/@b:c,d=e&f+g!$'()*",
    "/a%2Bb%3Ac%7Ed",
    "/x?/../",
    "/x?/../../api/orders",
    "/x?//%2e%2e/;\\%00%0a%25%2f%3f%23",
    "/?u=a%2Fb",
    "/api/orders?next=a/../b",
    "/api/orders?next=http://x.test//y/../z",
    "/api/orders?a=1;b=2",
    "/api?x",
    "/account?x/./y",
    "/x??y",
    "/x?",
    "http://app.test/x?/../",
    "http://app.test/api/orders?next=a/../b",
];

/// Returns methods and targets of requests that try to reach an area with an insufficient token.
pub fn hostile() -> Vec<(&'static str, String)> {
    let steps = SHAPES.iter().flat_map(|shape| STEPS.map(|step| shape.replace("STEP", step)));
    let paths: Vec<String> = steps.chain(OTHERS.map(str::to_owned)).collect();
    for path in &paths {
        assert!(
            !areas(path.as_bytes()).is_empty(),
            "no application interprets {path} as one of an area"
        );
    }
    // Some servers interpret a target depending on the method.
    let others = ["CONNECT", "OPTIONS"]
        .into_iter()
        .flat_map(|method| OTHERS.map(|path| (method, path.to_owned())));
    let no_paths = NO_PATHS.map(|(method, target)| (method, target.to_owned()));
    paths.iter().map(|path| ("GET", path.clone())).chain(others).chain(no_paths).collect()
}

/// Returns the areas to which a request target belongs for some application.
pub fn areas(target: &[u8]) -> BTreeSet<&'static str> {
    let interpretations = interpretations(target);
    let is_below = |path: &[u8], area: &str| {
        let path = path.to_ascii_lowercase();
        path.strip_prefix(area.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    AREAS
        .into_iter()
        .filter(|area| interpretations.iter().any(|path| is_below(path, area)))
        .collect()
}

/// Returns all interpretations of the path in a request target: the results of any steps of
/// `NORMALIZATIONS` in any order and number, with at most two decodings.
fn interpretations(target: &[u8]) -> BTreeSet<Vec<u8>> {
    let path = cut(target, b'?');
    let mut seen = BTreeSet::from([(path.clone(), 0)]);
    let mut open = vec![(path, 0)];
    while let Some((path, decoded)) = open.pop() {
        let mut next: Vec<_> =
            NORMALIZATIONS.iter().map(|normalize| (normalize(&path), decoded)).collect();
        if decoded < 2 {
            next.push((decode(&path), decoded + 1));
        }
        open.extend(next.into_iter().filter(|path| seen.insert(path.clone())));
    }
    seen.into_iter().map(|(path, _)| path).collect()
}

type Normalization = fn(&[u8]) -> Vec<u8>;

/// The steps by which one application or another normalizes a path, apart from decoding.
const NORMALIZATIONS: [Normalization; 11] = [
    |path| cut(path, b'?'),
    |path| cut(path, b'#'),
    |path| cut(path, 0),
    |path| path.iter().copied().filter(|byte| !byte.is_ascii_control()).collect(),
    |path| path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect(),
    |path| {
        path.split(|byte| *byte == b'/')
            .map(|segment| cut(segment, b';'))
            .collect::<Vec<_>>()
            .join(&b'/')
    },
    |path| {
        let mut merged = path.to_vec();
        merged.dedup_by(|next, last| (*next, *last) == (b'/', b'/'));
        merged
    },
    remove_dot_segments,
    without_scheme,
    without_authority,
    |path| if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() },
];

fn cut(text: &[u8], end: u8) -> Vec<u8> {
    text.iter().copied().take_while(|byte| *byte != end).collect()
}

/// Removes dot segments by RFC 3986, section 5.2.4, if the path begins with a slash.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let Some(path) = path.strip_prefix(b"/") else { return path.to_vec() };
    let mut kept: Vec<&[u8]> = vec![];
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        match *segment {
            b"." | b".." => {
                if *segment == b".." {
                    kept.pop();
                }
                if is_last {
                    kept.push(b"");
                }
            }
            other => kept.push(other),
        }
    }
    [b"/", &kept.join(&b'/')[..]].concat()
}

/// Removes a scheme, such as `http:`.
fn without_scheme(target: &[u8]) -> Vec<u8> {
    let end =
        target.iter().position(|byte| !(byte.is_ascii_alphanumeric() || b"+-.".contains(byte)));
    let end = end.filter(|end| *end > 0 && target[*end] == b':');
    end.map_or(target, |end| &target[end + 1..]).to_vec()
}

/// Removes an authority, such as `//app.test`.
fn without_authority(target: &[u8]) -> Vec<u8> {
    let Some(rest) = target.strip_prefix(b"//") else { return target.to_vec() };
    let start = rest.iter().position(|byte| *byte == b'/');
    start.map_or(&b"/"[..], |start| &rest[start..]).to_vec()
}

/// Decodes percent-encoding, also in the form `%u002f`. Invalid sequences stay.
pub fn decode(path: &[u8]) -> Vec<u8> {
    let hex =
        |digits: Option<&[u8]>| u8::from_str_radix(std::str::from_utf8(digits?).ok()?, 16).ok();
    let mut decoded = vec![];
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        let long = after.strip_prefix(b"u00").and_then(|digits| hex(digits.get(..2)));
        let (byte, length) = match (*first == b'%', hex(after.get(..2)), long) {
            (true, Some(byte), _) => (byte, 3),
            (true, None, Some(byte)) => (byte, 6),
            _ => (*first, 1),
        };
        decoded.push(byte);
        rest = &rest[length..];
    }
    decoded
}

/// Returns the decoded path and the query of a target, without scheme and authority.
pub fn parts(target: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let path = cut(target, b'?');
    let query = target[path.len()..].to_vec();
    (decode(&without_authority(&without_scheme(&path))), query)
}
