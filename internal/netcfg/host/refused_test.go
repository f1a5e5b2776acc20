// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSplitRefused checks that an error that wraps several keeps its text, alone and
// together with refused steps.
func TestSplitRefused(t *testing.T) {
	port := fmt.Errorf("listen on UDP port 51820: %w: %w", unix.EADDRINUSE, errors.New("errno=-98"))
	step := refusedStep(fmt.Errorf("add route 10.0.0.0/8: %w", unix.EINVAL))
	for name, tt := range map[string]struct {
		err     error
		refused int
		rest    string
	}{
		"nothing": {},
		"a failure": {
			err: errors.Join(nil, port), rest: port.Error(),
		},
		"a refused step": {
			err: errors.Join(step), refused: 1,
		},
		"both": {
			err: errors.Join(step, errors.Join(port, step)), refused: 2, rest: port.Error(),
		},
	} {
		t.Run(name, func(t *testing.T) {
			refused, rest := SplitRefused(tt.err)
			got := ""
			if rest != nil {
				got = rest.Error()
			}
			if len(refused) != tt.refused || got != tt.rest {
				t.Errorf("got %d refused and %q, want %d and %q", len(refused), got, tt.refused, tt.rest)
			}
			if tt.rest != "" && !errors.Is(rest, unix.EADDRINUSE) {
				t.Errorf("%v is not EADDRINUSE", rest)
			}
		})
	}
}
