// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scan is what govulncheck would print: a vulnerability of a module that is reached
// in two ways and one that is not, one without a fix, and one of the standard library.
const scan = `
{"config": {"protocol_version": "v1.0.0", "scanner_name": "govulncheck"}}
{"osv": {"id": "GO-2026-0001", "summary": "Panic in example.com/a"}}
{"osv": {"id": "GO-2026-0002", "summary": "Panic in net/http"}}
{"osv": {"id": "GO-2026-0003", "summary": "Nobody calls it"}}
{"osv": {"id": "GO-2026-0004", "summary": "Loop in example.com/b"}}
{"finding": {"osv": "GO-2026-0002", "fixed_version": "v1.26.9", "trace": [
	{"module": "stdlib", "version": "v1.26.8", "package": "net/http", "receiver": "*Server", "function": "Serve"},
	{"module": "example.com/us", "package": "example.com/us", "function": "main"}]}}
{"finding": {"osv": "GO-2026-0004", "trace": [
	{"module": "example.com/b", "version": "v0.1.0", "package": "example.com/b", "function": "Loop"},
	{"module": "example.com/us", "package": "example.com/us", "function": "main"}]}}
{"finding": {"osv": "GO-2026-0001", "fixed_version": "v1.2.4", "trace": [
	{"module": "example.com/a", "version": "v1.2.3"}]}}
{"finding": {"osv": "GO-2026-0001", "fixed_version": "v1.2.4", "trace": [
	{"module": "example.com/a", "version": "v1.2.3", "package": "example.com/a/x", "function": "Y"},
	{"module": "example.com/us", "package": "example.com/us", "function": "second"}]}}
{"finding": {"osv": "GO-2026-0001", "fixed_version": "v1.2.4", "trace": [
	{"module": "example.com/a", "version": "v1.2.3", "package": "example.com/a/x", "function": "Y"},
	{"module": "example.com/us", "package": "example.com/us", "function": "first"}]}}
{"finding": {"osv": "GO-2026-0003", "fixed_version": "v1.0.1", "trace": [
	{"module": "example.com/c", "version": "v1.0.0", "package": "example.com/c"}]}}
`

func TestParse(t *testing.T) {
	reached, err := parse([]byte(scan))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range reached {
		line := "prints "
		if v.fails() {
			line = "fails "
		}
		got = append(got, line+v.String())
	}
	want := []string{
		"fails GO-2026-0001: example.com/a v1.2.3: Panic in example.com/a (example.com/us.first reaches example.com/a/x.Y); run: go get example.com/a@v1.2.4",
		"fails GO-2026-0004: example.com/b v0.1.0: Loop in example.com/b (example.com/us.main reaches example.com/b.Loop); no version fixes it yet: use another module, or don't call that function",
		"prints GO-2026-0002: standard library of Go 1.26.8: Panic in net/http (example.com/us.main reaches net/http.Server.Serve); fixed in Go 1.26.9",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("vulnerabilities (-want +got):\n%s", diff)
	}
}

// What govulncheck prints may have another form one day: that must not look like
// nothing was found.
func TestParseFails(t *testing.T) {
	for _, scan := range []string{"", "No vulnerabilities found.", `{"finding": {"trace": 1}}`, strings.TrimSuffix(scan, "}\n")} {
		if got, err := parse([]byte(scan)); err == nil {
			t.Errorf("%q: got %v, want an error", scan, got)
		}
	}
}
