// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func TestLayOut(t *testing.T) {
	rows := [][]cell{cells("NODE", "PATH"), {{text: "a-name-that-is-long-1"}, {"direct", green}}, {{text: "b"}, {"none", red}}}
	for _, tt := range []struct {
		name   string
		width  int
		colors bool
		want   string
	}{
		{"as it is", 0, false, "NODE                   PATH\na-name-that-is-long-1  direct\nb                      none\n"},
		{"cut", 20, false, "NODE          PATH\na-name-…ng-1  direct\nb             none\n"},
		{"no narrower than eight", 5, false, "NODE      PATH\na-nam…-1  direct\nb         none\n"},
		{"colors", 0, true, "NODE                   PATH\na-name-that-is-long-1  \x1b[32mdirect\x1b[0m\nb                      \x1b[31mnone\x1b[0m\n"},
	} {
		if got := layOut(rows, tt.width, tt.colors); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		label, text string
		width       int
		want        string
	}{
		{"→ ", "one two three", 9, "→ one two\n  three\n"},
		{"→ ", "one two three", 0, "→ one two three\n"},
		{"Pods:  ", "-", 80, "Pods:  -\n"},
		{"→ ", "add the lines below\n[Service]\nA=b c", 10, "→ add the\n  lines\n  below\n  [Service]\n  A=b c\n"},
		{"", "0123456789 0", 4, "0123456789\n0\n"},
	} {
		if got := wrap(tt.label, tt.text, tt.width); got != tt.want {
			t.Errorf("%q %d: got %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 41 * time.Second: "41s", 65 * time.Second: "1m5s", 40*time.Minute + time.Second: "40m",
		2 * time.Hour: "2h", 150 * time.Minute: "2h30m", 76 * time.Hour: "3d4h", 30 * 24 * time.Hour: "30d",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "", time.Microsecond: "0.01ms", 210 * time.Microsecond: "0.21ms", 1234 * time.Microsecond: "1.2ms", 31 * time.Millisecond: "31ms", 2 * time.Second: "2000ms",
	} {
		if got := roundTrip(control.Milliseconds(d)); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// TestWellness: what --check takes for well.
func TestWellness(t *testing.T) {
	problem := mesh.Problem{Kind: "link"}
	for _, tt := range []struct {
		name string
		s    control.Status
		want string
	}{
		{"well, with a note and a node that is away", control.Status{Node: control.Node{Ready: true}, Notes: []mesh.Problem{problem}, Peers: []control.Peer{{}}}, ""},
		{"not ready", control.Status{}, "pods may not start on this host yet"},
		{"a problem", control.Status{Node: control.Node{Ready: true}, Problems: []mesh.Problem{problem}}, "there is a problem"},
		{"problems", control.Status{Node: control.Node{Ready: true}, Problems: []mesh.Problem{problem, problem}}, "there are 2 problems"},
		{"silent", control.Status{Node: control.Node{Ready: true}, Peers: []control.Peer{{Alive: true, Route: control.Route{Health: control.RouteSilent}}}}, "a node that is alive does not answer pings"},
		{"an error", control.Status{Node: control.Node{Ready: true}, Reconcile: control.Reconcile{Error: "no"}}, "the last reconcile failed"},
	} {
		got := ""
		if err := wellness(tt.s); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
