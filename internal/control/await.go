// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"errors"
	"os"
	"time"

	"github.com/meshd/meshd/internal/wait"
)

const (
	// askAgain is how often a daemon is asked whether pods may start.
	askAgain = 200 * time.Millisecond
	// absentFor is how long no daemon may answer: longer than a restart of it takes.
	absentFor = 30 * time.Second
)

// AwaitReady waits until pods may start on this node and returns the status then. It
// outlasts restarts of the daemon, also if it is killed while it answers. With an error it returns the last status that there
// was: that of ctx if a daemon answered last, and else why none did, be it for absentFor or
// when ctx ended. It wraps ErrNotRunning if nobody listens.
func (c *Client) AwaitReady(ctx context.Context) (Status, error) {
	var (
		last   Status
		absent error // why the daemon did not answer last
	)
	answered := time.Now()
	for {
		s, err := c.Status(ctx)
		switch {
		case err == nil && s.Node.Ready:
			return s, nil
		case err == nil:
			last, answered, absent = s, time.Now(), nil
		case ctx.Err() != nil: // it may have ended in the middle of the request
			return last, cmp.Or(absent, err)
		case errors.Is(err, os.ErrPermission), time.Since(answered) >= absentFor:
			return last, err
		default:
			absent = err
		}
		if ended := wait.Sleep(ctx, askAgain); ended != nil {
			return last, cmp.Or(absent, ended)
		}
	}
}
