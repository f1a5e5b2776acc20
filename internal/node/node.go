// SPDX-License-Identifier: Apache-2.0

// Package node holds what one node decides for itself, in pure functions: no I/O, no
// clock, no logging. What all nodes must decide alike is in package mesh.
//
// Each file is one state machine. Its memory is a plain value, time is an argument, and
// what there is to do is a result. Package daemon reads the inputs, keeps the memory and
// does what the results say.
package node
