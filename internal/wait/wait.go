// SPDX-License-Identifier: Apache-2.0

// Package wait sleeps as long as a context lives.
package wait

import (
	"context"
	"time"
)

// Sleep waits for d. It returns ctx's error if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
