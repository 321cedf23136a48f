"""Small worlds that tests start from, each made by one function.

project    folders with videos, labels, results and weight files
run        plans of inferences and their run directories, worked on without networks
training   plans of trainings, by hand; what a training leaves
place      a place where stages are done in the process of the test
launch     launches without a scheduler: their folders, with the files that jobs leave there
"""
