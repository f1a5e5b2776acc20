// SPDX-License-Identifier: Apache-2.0

package loglimit

import (
	"net/netip"
	"testing"
	"time"
)

func TestIsNew(t *testing.T) {
	var l Limiter
	start := time.Unix(1000, 0)
	from := netip.MustParseAddrPort
	for _, step := range []struct {
		after time.Duration
		parts []any
		want  bool
	}{
		{0, []any{"no space"}, true},
		{time.Second, []any{"no space"}, false},
		{2 * time.Second, []any{"no route"}, true},
		{3 * time.Second, []any{"no space"}, false}, // in turn with another one
		{4 * time.Second, []any{"wrong secret", from("192.0.2.1:40000")}, true},
		{5 * time.Second, []any{"wrong secret", from("192.0.2.1:40001")}, false},
		{6 * time.Second, []any{"wrong secret", from("192.0.2.2:40001")}, true},
		{7 * time.Second, []any{"read udp 10.0.0.1:33333->10.0.0.2:53: i/o timeout"}, true},
		{8 * time.Second, []any{"read udp 10.0.0.1:44444->10.0.0.2:53: i/o timeout"}, false},
		{9 * time.Second, []any{"read udp 10.0.0.1:44444->10.0.0.2:54: i/o timeout"}, true},
		{time.Hour, []any{"no space"}, true},
		{time.Hour + time.Second, []any{"no space"}, false},
	} {
		if got := l.IsNew(start.Add(step.after), step.parts...); got != step.want {
			t.Errorf("%v after %v: got %t, want %t", step.parts, step.after, got, step.want)
		}
	}
}

// What strangers make up takes no memory without end.
func TestBound(t *testing.T) {
	var l Limiter
	for i := range 3 * most {
		if !l.IsNew(time.Unix(0, 0), i) {
			t.Fatalf("line %d: got an old one, want a new one", i)
		}
	}
	if len(l.last) > most {
		t.Errorf("got %d lines remembered, want at most %d", len(l.last), most)
	}
}

// A line that was not logged after all is still new.
func TestForget(t *testing.T) {
	var l Limiter
	now := time.Unix(1000, 0)
	first := l.IsNew(now, "no space", "a")
	l.Forget("no space", "a")
	if again, third := l.IsNew(now, "no space", "a"), l.IsNew(now, "no space", "a"); !first || !again || third {
		t.Errorf("got %t, and after it was forgotten %t and %t, want new, new and old", first, again, third)
	}
}
