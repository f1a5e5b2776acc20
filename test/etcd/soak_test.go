// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSummary(t *testing.T) {
	link, loss := kinds[0], kinds[2]
	samples := []sample{
		{link, true, 0, 2 * time.Second},
		{loss, true, 1, 8 * time.Second},
		{link, true, 1, 3 * time.Second},
		{loss, true, 2, 11 * time.Second},
		{link, true, 0, time.Second},
		{loss, false, 0, 100 * time.Millisecond},
	}
	want := []string{
		"a gateway loses its link, the leader's site: 3 times, 1 elections, writable after 2s, at most 3s",
		"a site is lost, the leader's site: 2 times, 3 elections, writable after 11s, at most 11s",
		"a site is lost, another site: 1 times, 0 elections, writable after 100ms, at most 100ms",
	}
	if diff := cmp.Diff(want, summary(samples)); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	var missing []string
	for _, err := range missed(samples) {
		missing = append(missing, err.Error())
	}
	want = []string{
		"a gateway loses its link, the leader's site: 1 elections, writable after 3s: want no election",
		"a site is lost, the leader's site: 2 elections, writable after 11s: want at most 10s",
	}
	if diff := cmp.Diff(want, missing); diff != "" {
		t.Errorf("what is not as asked (-want +got):\n%s", diff)
	}
}
