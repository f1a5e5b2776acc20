// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RefusedStep is an error about one route, entry or peer that the kernel does not
// take. Most of these follow from what another node says, so one is a problem to be
// named, and not a failure of the host.
type RefusedStep struct{ err error }

// Error implements error.
func (r *RefusedStep) Error() string { return r.err.Error() }

// Unwrap returns the kernel's error.
func (r *RefusedStep) Unwrap() error { return r.err }

// refusedStep makes a RefusedStep of an error, unless it says that the link is gone,
// which is about no single step.
func refusedStep(err error) error {
	if err == nil || gone(err) {
		return err
	}
	return &RefusedStep{err}
}

// gone reports whether an error says that a link is not there.
func gone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// SplitRefused takes the refused steps out of an error of Apply. An error without any
// stays as it is: it may wrap several and have a text of its own.
func SplitRefused(err error) (refused []*RefusedStep, rest error) {
	if r, ok := err.(*RefusedStep); ok {
		return []*RefusedStep{r}, nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil, err
	}
	var others []error
	for _, e := range joined.Unwrap() {
		more, other := SplitRefused(e)
		refused, others = append(refused, more...), append(others, other)
	}
	if len(refused) == 0 {
		return nil, err
	}
	return refused, errors.Join(others...)
}
