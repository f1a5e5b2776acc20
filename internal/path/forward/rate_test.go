// SPDX-License-Identifier: Apache-2.0

package forward_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/path/forward"
)

// TestLimitIsDivided has kernel and user space never forward more together than the limit allows.
func TestLimitIsDivided(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint64Range(8, 1<<40).Draw(t, "limit")
		share := uint64(forward.FirstShare)
		for range 10 {
			kernel, user := forward.Divide(limit, share)
			if kernel+user != limit || kernel < limit/8 || user < limit/8 || user == 0 {
				t.Fatalf("%d are %d for the kernel and %d for user space", limit, kernel, user)
			}
			share = forward.Share(limit, rapid.Uint64Range(0, 2*limit).Draw(t, "kernel"), rapid.Uint64Range(0, 2*limit).Draw(t, "user"), share)
		}
	})
}

func TestShare(t *testing.T) {
	const limit = 8000
	tests := []struct {
		name                 string
		kernel, user, before uint64
		want                 uint64
	}{
		{"nothing is forwarded", 0, 0, 7, 7},
		{"some probes", 0, 300, 7, 7},
		{"user space alone", 0, 1000, 7, 1},
		{"the kernel alone", 1000, 0, 1, 7},
		{"the kernel, and little else", 900, 100, 1, 7},
		{"as much for both", 4000, 4000, 7, 4},
		{"nearly as it is", 4500, 3500, 4, 4},
	}
	for _, tt := range tests {
		if got := forward.Share(limit, tt.kernel, tt.user, tt.before); got != tt.want {
			t.Errorf("%s: got %d shares for the kernel, want %d", tt.name, got, tt.want)
		}
	}
}

func TestCounts(t *testing.T) {
	first := forward.Count(map[string]forward.Counter{
		forward.Forwarded4: {Packets: 2, Bytes: 2 * (28 + 100)}, forward.Forwarded6: {Packets: 1, Bytes: 48 + 100}, forward.Limited: {Packets: 3, Bytes: 900},
	})
	if want := (forward.Counts{Packets: 3, Bytes: 300, Limited: 3, Offered: 2*128 + 148 + 900}); first != want {
		t.Errorf("got %+v, want %+v", first, want)
	}
	more := forward.Counts{Packets: 5, Bytes: 500, Limited: 4, Offered: 2000}
	if got, want := more.Since(first), (forward.Counts{Packets: 2, Bytes: 200, Limited: 1, Offered: 2000 - first.Offered}); got != want {
		t.Errorf("got %+v since, want %+v", got, want)
	}
	if got := first.Since(more); got != first {
		t.Errorf("got %+v of a table that was made anew, want %+v", got, first)
	}
	if got := more.Since(first).Plus(first); got != more {
		t.Errorf("got the sum %+v, want %+v", got, more)
	}
}
