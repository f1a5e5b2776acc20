// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestPrintAll(t *testing.T) {
	wanted := []figure{
		{name: "join_ms", unit: "ms", reduce: median, bound: atMost(1000)},
		{name: "gap_ms", unit: "ms", reduce: worst, bound: atMost(300)},
		{name: "lost_packets", unit: "packets", reduce: worst, bound: atMost(0)},
		{name: "speed", unit: ratio, reduce: median, bound: atLeast(0.98)},
		{name: "bytes", unit: "B/s", reduce: median},
	}
	fine := samples{"join_ms": {3000, 1000, 4}, "gap_ms": {1, 300, 2}, "lost_packets": {0, 0}, "speed": {0.98}, "bytes": {1e6}}
	for name, test := range map[string]struct {
		change samples
		want   []string // one for each line of the error
	}{
		"all as they should be": {},
		"some out of bounds": {
			samples{"gap_ms": {1, 300.5, 2}, "lost_packets": {0, 1, 0}, "speed": {1, 0.979, 0.5}},
			[]string{"gap_ms is 300.5 ms, more than 300", "lost_packets is 1.0 packets, more than 0", "speed is 0.979 ratio, less than 0.98"},
		},
		"one that was not asked for": {samples{"gap_ms": {}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := samples{}
			for _, f := range wanted {
				s[f.name] = fine[f.name]
				if changed := test.change[f.name]; changed != nil {
					s[f.name] = changed
				}
			}
			var out strings.Builder
			err := printAll(&out, s, wanted)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if want := strings.Join(test.want, "\n"); got != want {
				t.Errorf("error: got %q, want %q", got, want)
			}
			measured := 0
			for _, values := range s {
				if len(values) > 0 {
					measured++
				}
			}
			if lines := strings.Count(out.String(), "bench "); lines != measured {
				t.Errorf("got %d figures, want all %d:\n%s", lines, measured, out.String())
			}
		})
	}
}
